# Trains what search-evolution_resnet_in1k.py leaves, or any Arch by pycls'
# recipe, that of configs/fast_scaling.
_base_ = '../fast_scaling/regnety-400mf-fast-4x_8xb128_in1k.py'

model = dict(
    type='mmscale.ArchClassifier',
    backbone=dict(
        arch='work_dirs/search-evolution_resnet_in1k/archs/scaling_stage_0.json', scaling=None
    ),
    # Its widths follow the Arch.
    head=dict(
        _delete_=True,
        type='LinearClsHead',
        num_classes=1000,
        loss=dict(type='CrossEntropyLoss'),
        topk=(1, 5),
    ),
)
