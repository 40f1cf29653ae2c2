# RetinaNet around a searched network of the digit space, trained from random weights.
_base_ = [
    '../_base_/models/retinanet_digits.py',
    '../_base_/datasets/digits_detection.py',
    '../_base_/detection_runtime.py',
]

model = dict(backbone=dict(arch='{{ fileDirname }}/../scalenet/archs/digits-s2.json'))
custom_hooks = [
    dict(type='mmscale.IterationSeedHook'),
    dict(type='mmscale.StrictLoadHook'),
]

optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=3e-3, weight_decay=1e-4), clip_grad=dict(max_norm=10.0)
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.04, by_epoch=False, begin=0, end=40),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False, begin=40, end=240),
]
train_cfg = dict(by_epoch=False, max_iters=240, val_interval=240)
val_cfg = dict()
test_cfg = dict()
