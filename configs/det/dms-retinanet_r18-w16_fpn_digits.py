# Learns the widths and depths of a whole RetinaNet on the digit data, through FPN and head, around
# mmdet's ResNet-18, a quarter as wide: half of its multiply-adds are left.
_base_ = './retinanet_r18-w16_fpn_digits.py'

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
train_cfg = dict(max_iters=150)
