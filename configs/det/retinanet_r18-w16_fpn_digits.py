# RetinaNet around mmdet's ResNet-18, a quarter as wide. It is trained as long as the search of
# dms-retinanet_r18-w16_fpn_digits.py and the retraining after it together: what they are compared
# with.
_base_ = [
    '../_base_/models/retinanet_r18-w16_digits.py',
    '../_base_/datasets/digits_detection.py',
    '../_base_/schedules/digits_detection_adamw.py',
    '../_base_/detection_runtime.py',
]

custom_hooks = [
    dict(type='mmscale.IterationSeedHook'),
    dict(type='mmscale.StrictLoadHook'),
]

# The learning rate stays, as in a search.
param_scheduler = [dict(type='LinearLR', start_factor=0.04, by_epoch=False, begin=0, end=40)]
train_cfg = dict(max_iters=300, val_interval=150)
val_cfg = dict()
test_cfg = dict()
