# The super-supernet of the small Once-for-All space: warm-up, sandwich with distillation.
_base_ = [
    '../_base_/models/super_net_digits.py',
    '../_base_/search_spaces/ofa-mbv3_digits.py',
    '../_base_/datasets/cluttered_digits_train.py',
    '../_base_/schedules/digits_super_net_sgd.py',
    '../_base_/super_net_runtime.py',
]

model = dict(
    backbone=dict(space={{_base_.space}}),
    head=dict(
        type='StackedLinearClsHead',
        in_channels=96,
        mid_channels=[128],
        act_cfg=dict(type='HSwish'),
    ),
)
