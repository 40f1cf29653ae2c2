# Learns the widths and depths of an ArchNet on the digit data: half its multiply-adds are left.
_base_ = ['../_base_/datasets/cluttered_digits.py', '../_base_/default_runtime.py']

model = dict(
    type='mmscale.DMSModel',
    target=0.5,
    input_shape=(1, 30, 30),
    structure_optimizer=dict(type='SGD', lr=0.05),
    model=dict(
        type='ImageClassifier',
        backbone=dict(
            type='mmscale.ArchNet',
            arch='{{ fileDirname }}/../scalenet/archs/digits-s2.json',
            channels_last=True,
        ),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='LinearClsHead',
            num_classes=10,
            in_channels=96,
            loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
            topk=(1,),
        ),
    ),
)
custom_hooks = [
    dict(type='mmscale.InputResolutionHook'),
    dict(type='mmscale.IterationSeedHook'),
    dict(type='mmscale.StrictLoadHook'),
    dict(type='mmscale.DMSHook'),
]

optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.2, momentum=0.9, nesterov=True, weight_decay=1e-4),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [dict(type='LinearLR', start_factor=0.04, by_epoch=False, begin=0, end=60)]
train_cfg = dict(by_epoch=False, max_iters=300, val_interval=300)
val_cfg = dict()
test_cfg = dict()
