# Trains what search-evolution_mobilenet-v2_in1k.py leaves, or any Arch by timm's
# recipe of EfficientNets, that of configs/scalenet.
_base_ = '../scalenet/scalenet-s0_8xb128_in1k.py'

model = dict(
    backbone=dict(arch='work_dirs/search-evolution_mobilenet-v2_in1k/archs/scaling_stage_0.json'),
)
