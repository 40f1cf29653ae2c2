# The published ScaleNet-S0 on ImageNet. Its authors trained it with timm and give no settings:
# these are timm's for EfficientNet-B0, 450 epochs (hfdocs/source/training_script.mdx there).
_base_ = ['../_base_/datasets/imagenet_randaugment.py', '../_base_/default_runtime.py']

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmscale.ArchNet', arch='scalenet-s0', drop_path_rate=0.2, zero_init_residual=True
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='mmscale.DropoutClsHead',
        dropout=0.2,
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
    # timm averages the statistics of BNs too.
    dict(type='EMAHook', momentum=1e-4, update_buffers=True, priority='ABOVE_NORMAL'),
]

# timm's 0.048 for batches of 2 x 384, scaled to 8 x 128; its EfficientNet-ES has the same.
optim_wrapper = dict(
    optimizer=dict(
        type='mmscale.RMSpropTF', lr=0.064, alpha=0.9, momentum=0.9, eps=1e-3, weight_decay=1e-5
    ),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
# 450 epochs of 1,251 whole batches of 1,024: 5 of warm-up from 1e-6, and 0.97 times at the first
# whole epoch after every 2.4 epochs. The two that fall into the warm-up count at its end.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6 / 0.064, by_epoch=False, begin=0, end=5 * 1251),
    dict(
        type='MultiStepLR',
        gamma=0.97,
        by_epoch=False,
        milestones=[1251 * max(5, -(-12 * step // 5)) for step in range(1, 188)],
    ),
]
train_cfg = dict(by_epoch=False, max_iters=562950, val_interval=6255)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(checkpoint=dict(interval=6255, save_best='auto'))
auto_scale_lr = dict(enable=False, base_batch_size=1024)
