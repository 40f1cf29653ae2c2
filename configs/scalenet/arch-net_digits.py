# Trains one network of the digit space from random weights; children set backbone.arch.
_base_ = [
    '../_base_/models/arch_net_digits.py',
    '../_base_/datasets/cluttered_digits.py',
    '../_base_/schedules/digits_sgd.py',
    '../_base_/default_runtime.py',
]

custom_hooks = [
    dict(type='mmscale.InputResolutionHook'),
    dict(type='mmscale.IterationSeedHook'),
    dict(type='mmscale.StrictLoadHook'),
]

train_cfg = dict(val_interval=600)
val_cfg = dict()
test_cfg = dict()
