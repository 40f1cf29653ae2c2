# RegNetY-400MF scaled by dWr to four times its flops, trained by mmpretrain's recipe for
# RegNetX-400MF: it has none for RegNetY.
_base_ = 'mmpretrain::regnet/regnetx-400mf_8xb128_in1k.py'
custom_imports = dict(
    imports=['mmscale.models', 'mmscale.datasets', 'mmscale.engine'], allow_failed_imports=False
)

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmscale.ArchNet',
        arch='RegNetY-400MF',
        zero_init_residual=True,
        scaling=dict(
            depth=4**0.1, width=4**0.4, group_width=4**0.4, resolution=4**0.05, rule='pycls'
        ),
    ),
    head=dict(in_channels=768),
)

# The crops have the resolution of the backbone's Arch.
custom_hooks = [
    dict(type='PreciseBNHook', num_samples=8192, interval=1, priority='ABOVE_NORMAL'),
    dict(type='mmscale.InputResolutionHook'),
]
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmscale.RandomResizedCropToResolution'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(
        type='Lighting',
        eigval={{_base_.EIGVAL}},
        eigvec={{_base_.EIGVEC}},
        alphastd=25.5,
        to_rgb=False,
    ),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmscale.CenterCropToResolution', crop_ratio=0.875),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
