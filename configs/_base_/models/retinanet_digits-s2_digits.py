# RetinaNet for gray images of digits around a searched network of their space.
_base_ = './retinanet_digits.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmscale.ArchNet',
        arch="""{{ fileDirname }}/../../scalenet/archs/digits-s2.json""",
        out_strides=(4, 8),
        channels_last=True,
        neck=dict(type='FPN', out_channels=64, num_outs=3, add_extra_convs='on_output'),
    ),
    neck=None,
)
