# RetinaNet around a searched network of the digit space, trained from random weights.
_base_ = [
    '../_base_/models/retinanet_digits-s2_digits.py',
    '../_base_/datasets/digits_detection.py',
    '../_base_/schedules/digits_detection_adamw.py',
    '../_base_/detection_runtime.py',
]

# From random weights the head learns much sooner with GroupNorm than without.
model = dict(bbox_head=dict(norm_cfg=dict(type='GN', num_groups=8)))
custom_hooks = [
    dict(type='mmscale.IterationSeedHook'),
    dict(type='mmscale.StrictLoadHook'),
]

train_cfg = dict(val_interval=240)
val_cfg = dict()
test_cfg = dict()
