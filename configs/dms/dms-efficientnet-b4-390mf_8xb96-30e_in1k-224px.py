# DMS-EN-B0: EfficientNet-B4 at 224 px comes down to 0.39 G multiply-adds in 30 epochs. All but the
# number of epochs is from the released search for 450 M, the only one whose settings are known
# (applications/efficientnet/scripts/DMS-450/prune.sh of its authors).
_base_ = ['../_base_/datasets/imagenet_randaugment.py', '../_base_/dms_runtime.py']

model = dict(
    type='mmscale.DMSModel',
    target=dict(flops=0.39e9),
    input_shape=(3, 224, 224),
    structure_optimizer=dict(type='mmscale.RMSpropTF', lr=2e-5, alpha=0.9, momentum=0.9, eps=1e-3),
    model=dict(
        type='ImageClassifier',
        backbone=dict(
            type='mmscale.ArchNet',
            arch='efficientnet-b4',
            scaling=dict(resolution=224 / 380),
            drop_path_rate=0.2,
        ),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='mmscale.DropoutClsHead',
            dropout=0.5,
            num_classes=1000,
            in_channels=1792,
            loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
            topk=(1, 5),
        ),
    ),
)
train_dataloader = dict(batch_size=96)

optim_wrapper = dict(
    optimizer=dict(
        type='mmscale.RMSpropTF', lr=0.048, alpha=0.9, momentum=0.9, eps=1e-3, weight_decay=1e-5
    ),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
# 30 epochs of 1,668 whole batches of 768: 5 of warm-up from 1e-6, and 0.97 times at the first
# whole epoch after every 2.4 epochs. The two that fall into the warm-up count at its end.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6 / 0.048, by_epoch=False, begin=0, end=5 * 1668),
    dict(
        type='MultiStepLR',
        gamma=0.97,
        by_epoch=False,
        milestones=[1668 * max(5, -(-12 * step // 5)) for step in range(1, 13)],
    ),
]
train_cfg = dict(by_epoch=False, max_iters=50040, val_interval=1668)
default_hooks = dict(checkpoint=dict(interval=1668, save_best='auto'))
auto_scale_lr = dict(enable=False, base_batch_size=768)
