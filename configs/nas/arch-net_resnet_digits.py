# Trains what search-evolution_resnet_digits.py leaves, or any Arch, from random weights.
_base_ = '../scalenet/arch-net_digits.py'

model = dict(
    type='mmscale.ArchClassifier',
    backbone=dict(arch='work_dirs/search-evolution_resnet_digits/archs/scaling_stage_0.json'),
    # Its widths follow the Arch.
    head=dict(
        _delete_=True,
        type='LinearClsHead',
        num_classes=10,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        topk=(1,),
    ),
)
