# Uniform compound scaling of a given base model, scored like the networks of a search.
_base_ = './search-mcea_digits.py'

test_cfg = dict(
    _delete_=True,
    type='mmscale.FamilyLoop',
    base='work_dirs/search-mcea_digits/archs/scaling_stage_0.json',
    strategy='compound',
    budget={{_base_.test_cfg.budget}},
    tolerance={{_base_.test_cfg.tolerance}},
    weights={{_base_.test_cfg.weights}},
    calibration_dataloader={{_base_.test_cfg.calibration_dataloader}},
    subnet_evaluator={{_base_.test_cfg.subnet_evaluator}},
)
