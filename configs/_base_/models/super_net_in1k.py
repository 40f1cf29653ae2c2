# A classifier for ImageNet around a super-supernet: shared kernels, sandwich with distillation, in
# which every iteration trains the largest network and a drawn one. Children set backbone.space,
# and where the space does not choose the width that the head sees, head.in_channels.
model = dict(
    type='mmscale.SuperNetClassifier',
    mode='sandwich',
    backbone=dict(type='mmscale.SuperNet', kernels='shared', sides=('left',), channels_last=True),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
)
