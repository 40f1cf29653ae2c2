# As ../scalenet/arch-net_digits.py, with DIST from the whole network: train that first with
#   python tools/train.py configs/scalenet/digits-s2.py
_base_ = '../scalenet/arch-net_digits.py'

model = dict(
    type='mmscale.DISTClassifier',
    # As the numbers in docs/dms.md were measured.
    backbone=dict(zero_init_residual=False),
    teacher=dict(
        type='ImageClassifier',
        backbone=dict(
            type='mmscale.ArchNet',
            arch="""{{ fileDirname }}/../scalenet/archs/digits-s2.json""",
            channels_last=True,
        ),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=10, in_channels=96),
    ),
    teacher_checkpoint='work_dirs/digits-s2/iter_600.pth',
)
