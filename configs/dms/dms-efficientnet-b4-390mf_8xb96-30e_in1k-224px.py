# DMS-EN-B0: EfficientNet-B4 at 224 px comes down to 0.39 G multiply-adds in 30 epochs. Optimizers
# and batch are those of the released 450 M search, which is undisclosed for the others.
_base_ = ['../_base_/datasets/imagenet.py', '../_base_/dms_runtime.py']

model = dict(
    type='mmscale.DMSModel',
    target=dict(flops=0.39e9),
    input_shape=(3, 224, 224),
    structure_optimizer=dict(type='RMSprop', lr=2e-5, alpha=0.9, momentum=0.9, eps=1e-3),
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
            type='LinearClsHead',
            num_classes=1000,
            in_channels=1792,
            loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
            topk=(1, 5),
        ),
    ),
)
train_dataloader = dict(batch_size=96)

optim_wrapper = dict(
    optimizer=dict(type='RMSprop', lr=0.048, alpha=0.9, momentum=0.9, eps=1e-3, weight_decay=1e-5),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
# 30 epochs of 1,281,167 images in batches of 768, the first 5 of them warm-up.
param_scheduler = [
    dict(type='LinearLR', start_factor=2e-5, by_epoch=False, begin=0, end=8340),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=False, begin=8340, end=50040),
]
train_cfg = dict(by_epoch=False, max_iters=50040, val_interval=1668)
default_hooks = dict(checkpoint=dict(interval=1668, save_best='auto'))
auto_scale_lr = dict(enable=False, base_batch_size=768)
