# RetinaNet around an even narrower ResNet-18: all widths of retinanet_r18-w16_fpn_digits.py shrunk
# alike, to half of the multiply-adds.
_base_ = './retinanet_r18-w16_fpn_digits.py'

model = dict(
    backbone=dict(stem_channels=11, base_channels=11),
    neck=dict(in_channels=[11, 22, 44], out_channels=44),
    bbox_head=dict(in_channels=44, feat_channels=44),
)
