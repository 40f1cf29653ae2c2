# Plain evolution at one budget, the base model's, with the generations of search-mcea_digits.py.
_base_ = './search-mcea_digits.py'

test_cfg = dict(
    _delete_=True,
    type='mmscale.EvolutionLoop',
    strategy=None,
    population={{_base_.test_cfg.population}},
    generations=6,
    budget={{_base_.test_cfg.budget}},
    tolerance={{_base_.test_cfg.tolerance}},
    calibration_dataloader={{_base_.test_cfg.calibration_dataloader}},
    subnet_evaluator={{_base_.test_cfg.subnet_evaluator}},
)
