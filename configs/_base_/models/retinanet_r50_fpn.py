# mmdet's RetinaNet-R50 for COCO with all network stages trained: a frozen one cannot shrink.
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

model = dict(backbone=dict(frozen_stages=-1))
