# What searches by gradient around an ArchNet on ImageNet need on top of the runtime that all
# configs share.
_base_ = './default_runtime.py'

custom_hooks = [
    dict(type='mmscale.InputResolutionHook'),
    dict(type='mmscale.IterationSeedHook'),
    dict(type='mmscale.StrictLoadHook'),
    dict(type='mmscale.DMSHook', interval=100),
]
val_cfg = dict()
test_cfg = dict()
