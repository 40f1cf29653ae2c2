# Trains what search-evolution_attentive_in1k.py leaves, or any Arch.
_base_ = './arch-net_ofa-mbv3_8xb128_in1k.py'

model = dict(
    backbone=dict(arch='work_dirs/search-evolution_attentive_in1k/archs/scaling_stage_0.json'),
    head=dict(act_cfg=dict(type='SiLU')),
)
