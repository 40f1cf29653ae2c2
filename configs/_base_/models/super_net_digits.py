# A classifier for the digit data around a super-supernet: shared kernels, warm-up, sandwich with
# distillation. Children set backbone.space, and where the space does not choose the width that the
# head sees, head.in_channels.
model = dict(
    type='mmscale.SuperNetClassifier',
    mode='sandwich',
    warmup_iters=150,
    backbone=dict(type='mmscale.SuperNet', kernels='shared', sides=('left',), channels_last=True),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        cal_acc=True,
    ),
)
