# Learns the widths and depths of digits-s2, an ArchNet: half its multiply-adds are left.
_base_ = '../scalenet/digits-s2.py'

model = dict(
    _delete_=True,
    type='mmscale.DMSModel',
    target=0.5,
    input_shape=(1, 30, 30),
    model={{_base_.model}},
)
custom_hooks = [
    dict(type='mmscale.InputResolutionHook'),
    dict(type='mmscale.IterationSeedHook'),
    dict(type='mmscale.StrictLoadHook'),
    dict(type='mmscale.DMSHook'),
]

# The learning rate stays: it falls when the network that was found is trained.
param_scheduler = [dict(type='LinearLR', start_factor=0.04, by_epoch=False, begin=0, end=60)]
train_cfg = dict(max_iters=300, val_interval=300)
