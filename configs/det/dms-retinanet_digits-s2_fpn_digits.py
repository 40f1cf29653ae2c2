# The search of dms-retinanet_r18-w16_fpn_digits.py around a searched network of the digit space,
# which owns the pyramid.
_base_ = './dms-retinanet_r18-w16_fpn_digits.py'

network = dict(
    _delete_=True,
    type='mmscale.ArchNet',
    arch='{{ fileDirname }}/../scalenet/archs/digits-s2.json',
    out_strides=(4, 8),
    channels_last=True,
    neck=dict(type='FPN', out_channels=64, num_outs=3, add_extra_convs='on_output'),
)
model = dict(model=dict(backbone=network, neck=None))
