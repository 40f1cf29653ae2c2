# Trains what search-evolution_regnet_in1k.py leaves, or any Arch.
_base_ = './arch-net_resnet_8xb128_in1k.py'

model = dict(
    backbone=dict(arch='work_dirs/search-evolution_regnet_in1k/archs/scaling_stage_0.json'),
)
