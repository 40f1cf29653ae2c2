# A small DeiT on digits without clutter, with which hundreds of iterations leave it at chance. As
# the --recipe of tools/prune.py it trains what dms-deit-mini_digits.py has left of it.
_base_ = ['../_base_/datasets/cluttered_digits.py', '../_base_/default_runtime.py']

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='VisionTransformer',
        arch=dict(embed_dims=64, num_layers=6, num_heads=4, feedforward_channels=192),
        img_size=24,
        patch_size=4,
        in_channels=1,
    ),
    neck=None,
    head=dict(
        type='VisionTransformerClsHead',
        num_classes=10,
        in_channels=64,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        topk=(1,),
    ),
)

data_preprocessor = dict(mean=[43.7], std=[45.0])
composition = dict(canvas=24, digit_size=(12, 15), fragments=(0, 0), rotation=10.0, shear=0.1)
pipeline = [
    dict(type='mmscale.ResizeToResolution', resolution=24, interpolation='area'),
    dict(type='mmscale.GrayImage'),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    sampler=dict(batch_size=96),
    dataset=dict(dataset=dict(composition=composition, pipeline=pipeline)),
)
val_dataloader = dict(dataset=dict(composition=composition, pipeline=pipeline))
test_dataloader = dict(dataset=dict(composition=composition, pipeline=pipeline))
custom_hooks = [dict(type='mmscale.IterationSeedHook'), dict(type='mmscale.StrictLoadHook')]

optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05), clip_grad=dict(max_norm=5.0)
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.04, by_epoch=False, begin=0, end=60),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False, begin=60, end=300),
]
train_cfg = dict(by_epoch=False, max_iters=300, val_interval=300)
val_cfg = dict()
test_cfg = dict()
