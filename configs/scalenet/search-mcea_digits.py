# Joint search of base model and scaling strategy on the digit data.
_base_ = './supernet_digits.py'

load_from = 'work_dirs/supernet_digits/iter_1000.pth'

train_cfg = None
train_dataloader = None
optim_wrapper = None
param_scheduler = None
custom_hooks = [dict(type='mmscale.StrictLoadHook')]

test_cfg = dict(
    type='mmscale.SearchLoop',
    search=dict(type='mmscale.MCEA', evaluations=200),
    budget=0.7e6,
    tolerance=0.05,
    weights=[1, 1, 1, 1, 1],
    subnet_evaluator=dict(calibration_images=768, max_images=1500, side='left', threads=1),
)
calibration_dataloader = dict(
    batch_size=256,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmscale.SeededDataset',
        dataset=dict(
            type='mmscale.ClutteredDigits',
            split='train',
            pipeline={{_base_.test_pipeline}},
        ),
    ),
    collate_fn=dict(type='default_collate'),
)
test_dataloader = dict(
    batch_size=250,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmscale.SeededDataset',
        dataset=dict(
            type='mmscale.ClutteredDigits', split='search', pipeline={{_base_.test_pipeline}}
        ),
    ),
    collate_fn=dict(type='default_collate'),
)
test_evaluator = []
