# What searches of ArchNets on ImageNet share: data, runtime, hooks.
_base_ = ['./datasets/imagenet.py', './default_runtime.py']

custom_hooks = [
    dict(type='mmscale.InputResolutionHook'),
    dict(type='mmscale.IterationSeedHook'),
    dict(type='mmscale.StrictLoadHook'),
    dict(type='mmscale.DMSHook', interval=100),
]
val_cfg = dict()
test_cfg = dict()
