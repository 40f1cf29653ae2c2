# Random search on the digit data, at as many evaluations as search-mcea_digits.py took with
# seed 0.
_base_ = './search-mcea_digits.py'

test_cfg = dict(
    _delete_=True,
    type='mmscale.RandomSearchLoop',
    evaluations=211,
    budget={{_base_.test_cfg.budget}},
    tolerance={{_base_.test_cfg.tolerance}},
    weights={{_base_.test_cfg.weights}},
    calibration_dataloader={{_base_.test_cfg.calibration_dataloader}},
    subnet_evaluator={{_base_.test_cfg.subnet_evaluator}},
)
