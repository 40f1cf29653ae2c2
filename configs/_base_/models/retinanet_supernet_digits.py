# The RetinaNet for gray images of digits around a SuperNet, with 32 channels, so that the backbone
# has its share of the cost. Its weights are those that were trained to classify: first
# tools/train.py configs/scalenet/supernet_digits.py
_base_ = ['./retinanet_digits.py', '../search_spaces/digits_detection.py']

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmscale.SuperNet',
        space={{_base_.space}},
        kernels='shared',
        out_strides=(4, 8),
        channels_last=True,
        neck=dict(type='FPN', out_channels=32, num_outs=3, add_extra_convs='on_output'),
        init_cfg=dict(
            type='Pretrained',
            checkpoint='work_dirs/supernet_digits/iter_1000.pth',
            prefix='backbone.',
        ),
    ),
    neck=None,
    bbox_head=dict(in_channels=32, feat_channels=32, norm_cfg=dict(type='GN', num_groups=8)),
)
