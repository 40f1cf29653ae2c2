# Trains what search-evolution_attentive_digits.py leaves, or any Arch, from random weights.
_base_ = './arch-net_resnet_digits.py'

model = dict(
    backbone=dict(arch='work_dirs/search-evolution_attentive_digits/archs/scaling_stage_0.json'),
    head=dict(type='StackedLinearClsHead', act_cfg=dict(type='SiLU')),
)
