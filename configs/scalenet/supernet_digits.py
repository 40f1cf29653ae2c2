# The super-supernet of the digit space: shared kernels, warm-up on a middle subnet, then one drawn
# subnet an iteration.
_base_ = [
    '../_base_/search_spaces/digits.py',
    '../_base_/datasets/cluttered_digits_train.py',
    '../_base_/schedules/digits_sgd.py',
    '../_base_/default_runtime.py',
]

model = dict(
    type='mmscale.SuperNetClassifier',
    mode='single',
    warmup_iters=150,
    warmup_scaling_stage=2,
    warmup_subnet='middle',
    backbone=dict(
        type='mmscale.SuperNet',
        space={{_base_.space}},
        kernels='shared',
        channels_last=True,
        zero_init_residual=True,
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=96,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        cal_acc=True,
    ),
)

custom_hooks = [
    dict(
        type='mmscale.HierarchicalSamplerHook',
        distribution='inverse_sqrt_budget',
        sides=('left',),
    ),
    dict(type='mmscale.IterationSeedHook'),
    dict(type='mmscale.StrictLoadHook'),
]
model_wrapper_cfg = dict(type='mmscale.SliceParallel')

param_scheduler = [
    dict(type='LinearLR', start_factor=0.04, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False, begin=100, end=1000),
]
train_cfg = dict(max_iters=1000)
