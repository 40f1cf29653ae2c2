# The RetinaNet for gray images of digits around a SuperNet with strides up to 16; with 32 channels,
# so that the backbone has its share of the cost.
_base_ = ['./retinanet_digits.py', '../search_spaces/digits_detection.py']

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmscale.SuperNet',
        space={{_base_.space}},
        kernels='shared',
        out_strides=(8, 16),
        channels_last=True,
        neck=dict(type='FPN', out_channels=32, num_outs=3, add_extra_convs='on_output'),
    ),
    bbox_head=dict(
        in_channels=32,
        feat_channels=32,
        norm_cfg=dict(type='GN', num_groups=8),
        anchor_generator=dict(octave_base_scale=1.25, strides=[8, 16, 32]),
    ),
)
