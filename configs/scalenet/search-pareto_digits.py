# The front of score against multiply-adds on the digit data: the best network at every budget.
_base_ = './search-mcea_digits.py'

test_cfg = dict(
    _delete_=True,
    type='mmscale.ParetoLoop',
    metric='flops',
    cost_range=[0.5e6, 12e6],
    population=16,
    generations=10,
    calibration_dataloader={{_base_.test_cfg.calibration_dataloader}},
    subnet_evaluator={{_base_.test_cfg.subnet_evaluator}},
)
