# Joint search of base model and scaling strategy by the mAP of the detectors they make.
_base_ = './retinanet_supernet_fpn_digits.py'

load_from = 'work_dirs/retinanet_supernet_fpn_digits/iter_150.pth'

train_cfg = None
train_dataloader = None
optim_wrapper = None
param_scheduler = None
custom_hooks = [dict(type='mmscale.StrictLoadHook')]

scoring_pipeline = [
    dict(type='LoadImageFromFile', color_type='grayscale'),
    dict(type='mmscale.ResizeToResolution', interpolation='area'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'instances'),
    ),
]
test_cfg = dict(
    type='mmscale.SearchLoop',
    search=dict(type='mmscale.MCEA', population=6, generations=2, rounds=1, num_base_models=2),
    # Of the whole detector at its input size: backbone, neck and head.
    budget=13e6,
    tolerance=0.05,
    weights=[1, 1, 1],
    subnet_evaluator=dict(
        type='mmscale.DetectionEvaluator',
        calibration_images=50,
        max_images=150,
        side='left',
        threads=1,
    ),
)
calibration_dataloader = dict(
    batch_size=50,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmscale.SeededDataset',
        dataset=dict(
            type='mmscale.DigitsDetection',
            split='train',
            pipeline=scoring_pipeline,
            test_mode=True,
        ),
    ),
)
test_dataloader = dict(
    batch_size=50,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmscale.SeededDataset',
        dataset=dict(
            type='mmscale.DigitsDetection',
            split='search',
            pipeline=scoring_pipeline,
            test_mode=True,
        ),
    ),
)
test_evaluator = []
