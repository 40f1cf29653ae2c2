# RetinaNet around a searched network of the digit space, trained from random weights.
_base_ = [
    '../_base_/models/retinanet_digits.py',
    '../_base_/datasets/digits_detection.py',
    '../_base_/detection_runtime.py',
]

# From random weights the head learns much sooner with GroupNorm than without.
model = dict(bbox_head=dict(norm_cfg=dict(type='GN', num_groups=8)))
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
