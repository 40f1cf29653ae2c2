# Trains what search-evolution_ofa-mbv3_in1k.py leaves, or any Arch by timm's
# recipe of EfficientNets, that of configs/scalenet.
_base_ = '../scalenet/scalenet-s0_8xb128_in1k.py'

model = dict(
    type='mmscale.ArchClassifier',
    backbone=dict(arch='work_dirs/search-evolution_ofa-mbv3_in1k/archs/scaling_stage_0.json'),
    # Its widths follow the Arch.
    head=dict(
        _delete_=True,
        type='StackedLinearClsHead',
        num_classes=1000,
        dropout_rate=0.2,
        act_cfg=dict(type='HSwish'),
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        topk=(1, 5),
    ),
)
