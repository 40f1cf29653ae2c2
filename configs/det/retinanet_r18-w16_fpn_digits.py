# The whole detector that dms-retinanet_r18-w16_fpn_digits.py prunes, trained as long as the search
# and the retraining together: what it is compared with.
_base_ = [
    '../_base_/models/dms_retinanet_digits.py',
    '../_base_/datasets/digits_detection.py',
    '../_base_/detection_runtime.py',
]

custom_hooks = [
    dict(type='mmscale.IterationSeedHook'),
    dict(type='mmscale.StrictLoadHook'),
]

optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=3e-3, weight_decay=1e-4), clip_grad=dict(max_norm=10.0)
)
# The learning rate stays, as in a search.
param_scheduler = [dict(type='LinearLR', start_factor=0.04, by_epoch=False, begin=0, end=40)]
train_cfg = dict(by_epoch=False, max_iters=300, val_interval=150)
val_cfg = dict()
test_cfg = dict()
