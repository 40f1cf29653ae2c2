# A classifier for the digit data around one Arch; children set backbone.arch.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmscale.ArchNet', arch=None, channels_last=True, zero_init_residual=True),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=96,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        topk=(1,),
    ),
)
