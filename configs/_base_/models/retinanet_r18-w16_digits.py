# RetinaNet for gray images of digits around mmdet's ResNet-18, a quarter as wide. Nothing is
# frozen, and the head has no GroupNorm, whose groups would have to keep their channels.
_base_ = './retinanet_digits.py'

model = dict(
    backbone=dict(
        depth=18,
        in_channels=1,
        stem_channels=16,
        base_channels=16,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(0, 1, 2),
        frozen_stages=-1,
        norm_eval=False,
        init_cfg=None,
    ),
    neck=dict(
        in_channels=[16, 32, 64],
        out_channels=64,
        start_level=0,
        add_extra_convs=False,
        num_outs=3,
    ),
)
