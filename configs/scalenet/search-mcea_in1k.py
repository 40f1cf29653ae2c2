# Joint search of base model and scaling strategy in the published space, scored on training images
# set aside. The released schedule is
# search=dict(type='mmscale.MCEA', population=64, generations=40, rounds=8, num_base_models=20).
_base_ = './supernet_32xb8_in1k.py'

load_from = 'work_dirs/supernet_32xb8_in1k/iter_750000.pth'

train_cfg = None
train_dataloader = None
optim_wrapper = None
param_scheduler = None
custom_hooks = [dict(type='mmscale.StrictLoadHook')]

test_cfg = dict(
    type='mmscale.SearchLoop',
    search=dict(type='mmscale.MCEA', evaluations=5000),
    # Admits the published family: its S0 has 354,933,888 flops, and S1 to S3 are +12.7, +14.2 and
    # +6.9 % off 2, 4 and 8 times as many.
    budget=340e6,
    tolerance=0.15,
    weights=[0, 1, 1, 1],
    # Images of nine resolutions, decoded once: 32 GB in the work dir.
    subnet_evaluator=dict(calibration_images=4096, cache='disk'),
)
calibration_dataloader = dict(
    batch_size=128,
    num_workers=8,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmscale.SeededDataset',
        dataset=dict(
            type='ImageNet',
            data_root='data/imagenet',
            split='train',
            ann_file='meta/train_without_search.txt',
            pipeline={{_base_.test_pipeline}},
        ),
    ),
    collate_fn=dict(type='default_collate'),
)
test_dataloader = dict(
    batch_size=128,
    num_workers=8,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmscale.SeededDataset',
        dataset=dict(
            type='ImageNet',
            data_root='data/imagenet',
            split='train',
            ann_file='meta/search.txt',
            pipeline={{_base_.test_pipeline}},
        ),
    ),
    collate_fn=dict(type='default_collate'),
)
test_evaluator = []
