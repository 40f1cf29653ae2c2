# What the training of super-supernets needs on top of the runtime that all configs share.
_base_ = './default_runtime.py'

custom_hooks = [
    dict(type='mmscale.HierarchicalSamplerHook', distribution='choices', sides=('left',)),
    dict(type='mmscale.IterationSeedHook'),
    dict(type='mmscale.StrictLoadHook'),
]
model_wrapper_cfg = dict(type='mmscale.SliceParallel')
