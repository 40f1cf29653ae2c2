# Learns the widths and depths of a whole RetinaNet around a searched network of the digit space,
# which owns the pyramid: half of its multiply-adds are left.
_base_ = [
    '../_base_/models/retinanet_digits-s2_digits.py',
    '../_base_/datasets/digits_detection.py',
    '../_base_/schedules/digits_detection_adamw.py',
    '../_base_/detection_runtime.py',
]

model = dict(
    _delete_=True,
    type='mmscale.DMSModel',
    target=0.5,
    input_shape=(1, 96, 96),
    model={{_base_.model}},
)
custom_hooks = [
    dict(type='mmscale.IterationSeedHook'),
    dict(type='mmscale.StrictLoadHook'),
    dict(type='mmscale.DMSHook'),
]

# The learning rate stays: it falls when the network that was found is trained.
param_scheduler = [dict(type='LinearLR', start_factor=0.04, by_epoch=False, begin=0, end=40)]
train_cfg = dict(max_iters=150, val_interval=150)
val_cfg = dict()
test_cfg = dict()
