# The front of score against multiply-adds on ImageNet, over the published search space.
_base_ = './search-mcea_in1k.py'

test_cfg = dict(
    _delete_=True,
    type='mmscale.ParetoLoop',
    metric='flops',
    cost_range=[0.2e9, 4e9],
    population=64,
    generations=40,
    calibration_dataloader={{_base_.test_cfg.calibration_dataloader}},
    subnet_evaluator={{_base_.test_cfg.subnet_evaluator}},
)
