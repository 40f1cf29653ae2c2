# Random search on the digit data, for comparison at as many evaluations as search_digits.py took.
_base_ = './search_digits.py'

test_cfg = dict(
    _delete_=True,
    type='mmscale.RandomSearchLoop',
    evaluations=300,
    budget={{_base_.test_cfg.budget}},
    tolerance={{_base_.test_cfg.tolerance}},
    weights={{_base_.test_cfg.weights}},
    calibration_dataloader={{_base_.test_cfg.calibration_dataloader}},
    subnet_evaluator={{_base_.test_cfg.subnet_evaluator}},
)
