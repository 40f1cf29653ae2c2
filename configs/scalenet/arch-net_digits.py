# Trains one network of the digit space from random weights; children set backbone.arch.
_base_ = [
    '../_base_/models/arch_net_digits.py',
    '../_base_/datasets/cluttered_digits.py',
    '../_base_/default_runtime.py',
]

custom_hooks = [
    dict(type='mmscale.InputResolutionHook'),
    dict(type='mmscale.IterationSeedHook'),
    dict(type='mmscale.StrictLoadHook'),
]

optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.2, momentum=0.9, nesterov=True, weight_decay=1e-4),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.04, by_epoch=False, begin=0, end=60),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False, begin=60, end=600),
]
train_cfg = dict(by_epoch=False, max_iters=600, val_interval=600)
val_cfg = dict()
test_cfg = dict()
