# Trains what search-evolution_mobilenet-v2_digits.py leaves, or any Arch, from random weights.
_base_ = './arch-net_resnet_digits.py'

model = dict(
    backbone=dict(
        arch='work_dirs/search-evolution_mobilenet-v2_digits/archs/scaling_stage_0.json'
    ),
)
