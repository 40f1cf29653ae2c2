# DMS-ResNet-50: ResNet-152 comes down to 4 G multiply-adds in 10 epochs. Batch, optimizer and
# augmentation are those of mmpretrain's ResNets; the paper gives none.
_base_ = ['../_base_/datasets/imagenet.py', '../_base_/dms_runtime.py']

model = dict(
    type='mmscale.DMSModel',
    target=dict(flops=4.0e9),
    input_shape=(3, 224, 224),
    model=dict(
        type='ImageClassifier',
        backbone=dict(type='mmscale.ArchNet', arch='resnet-152'),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='LinearClsHead',
            num_classes=1000,
            in_channels=2048,
            loss=dict(type='CrossEntropyLoss'),
            topk=(1, 5),
        ),
    ),
)
train_dataloader = dict(batch_size=32)

optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4))
# 10 epochs of 1,281,167 images in batches of 256.
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=2500),
    dict(type='CosineAnnealingLR', eta_min=1e-3, by_epoch=False, begin=2500, end=50040),
]
train_cfg = dict(by_epoch=False, max_iters=50040, val_interval=5004)
default_hooks = dict(checkpoint=dict(interval=5004, save_best='auto'))
auto_scale_lr = dict(enable=False, base_batch_size=256)
