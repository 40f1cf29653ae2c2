# mmdet's RetinaNet for gray images of digits, with 64 channels; children set backbone and neck.
_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'

model = dict(
    # As for the classification data, so that its weights see what they know.
    data_preprocessor=dict(mean=[52.7], std=[53.6], bgr_to_rgb=False, pad_size_divisor=1),
    bbox_head=dict(
        num_classes=10,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        # Digits are 8 to 37 pixels high at a resolution of 96, and narrower than high.
        anchor_generator=dict(
            octave_base_scale=2, scales_per_octave=3, ratios=[1.4], strides=[4, 8, 16]
        ),
    ),
    test_cfg=dict(nms_pre=300, max_per_img=30),
)
