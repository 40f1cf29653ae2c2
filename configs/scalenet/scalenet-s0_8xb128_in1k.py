# The published ScaleNet-S0 on ImageNet: timm's recipe for EfficientNets, 450 epochs.
_base_ = ['../_base_/datasets/imagenet.py', '../_base_/default_runtime.py']

model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmscale.ArchNet', arch='scalenet-s0', drop_path_rate=0.2),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=1280,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        topk=(1, 5),
    ),
)

custom_hooks = [
    dict(type='mmscale.InputResolutionHook'),
    dict(type='mmscale.IterationSeedHook'),
    dict(type='mmscale.StrictLoadHook'),
    dict(type='EMAHook', momentum=1e-4, priority='ABOVE_NORMAL'),
]

# 450 epochs of 1,281,167 images in batches of 1,024; timm's 0.048 at 384 scaled to 1,024.
optim_wrapper = dict(
    optimizer=dict(type='RMSprop', lr=0.128, alpha=0.9, momentum=0.9, eps=1e-3, weight_decay=1e-5),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=False, begin=0, end=6255),
    dict(type='CosineAnnealingLR', eta_min=1e-6, by_epoch=False, begin=6255, end=562950),
]
train_cfg = dict(by_epoch=False, max_iters=562950, val_interval=6255)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(checkpoint=dict(interval=6255, save_best='auto'))
auto_scale_lr = dict(enable=False, base_batch_size=1024)
