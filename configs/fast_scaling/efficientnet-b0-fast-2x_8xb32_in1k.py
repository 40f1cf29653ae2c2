# EfficientNet-B0 scaled by dWr to twice its flops, trained by mmpretrain's recipe for B0.
_base_ = 'mmpretrain::efficientnet/efficientnet-b0_8xb32_in1k.py'
custom_imports = dict(
    imports=['mmscale.models', 'mmscale.datasets', 'mmscale.engine'], allow_failed_imports=False
)

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmscale.ArchNet',
        arch='EfficientNet-B0',
        scaling=dict(depth=2**0.1, width=2**0.4, resolution=2**0.05, rule='pycls'),
    ),
    head=dict(in_channels=1688),
)

# The crops have the resolution of the backbone's Arch.
custom_hooks = [dict(type='mmscale.InputResolutionHook')]
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmscale.RandomResizedCropToResolution', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmscale.CenterCropToResolution', crop_ratio=0.875, interpolation='bicubic'),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
