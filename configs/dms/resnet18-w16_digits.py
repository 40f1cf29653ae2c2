# mmpretrain's ResNet-18 on the digit data, a quarter as wide and without the reductions of its
# stem. As the --recipe of tools/prune.py it trains what dms-resnet18-w16_digits.py has left of it.
_base_ = [
    '../_base_/datasets/cluttered_digits.py',
    '../_base_/schedules/digits_sgd.py',
    '../_base_/default_runtime.py',
]

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='ResNet_CIFAR', depth=18, in_channels=1, stem_channels=16, base_channels=16
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=128,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        topk=(1,),
    ),
)

pipeline = [
    dict(type='mmscale.ResizeToResolution', resolution=24, interpolation='area'),
    dict(type='mmscale.GrayImage'),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    sampler=dict(batch_size=96),
    dataset=dict(dataset=dict(pipeline=pipeline)),
)
val_dataloader = dict(dataset=dict(pipeline=pipeline))
test_dataloader = dict(dataset=dict(pipeline=pipeline))
custom_hooks = [dict(type='mmscale.IterationSeedHook'), dict(type='mmscale.StrictLoadHook')]

train_cfg = dict(val_interval=600)
val_cfg = dict()
test_cfg = dict()
