# The scaling strategy of a given base model: after search-evolution_digits.py, the sequential
# baseline.
_base_ = './search-mcea_digits.py'

test_cfg = dict(
    _delete_=True,
    type='mmscale.ScalingLoop',
    base='work_dirs/search-evolution_digits/archs/scaling_stage_0.json',
    budget={{_base_.test_cfg.budget}},
    tolerance={{_base_.test_cfg.tolerance}},
    weights={{_base_.test_cfg.weights}},
    calibration_dataloader={{_base_.test_cfg.calibration_dataloader}},
    subnet_evaluator={{_base_.test_cfg.subnet_evaluator}},
)
