_base_ = './faster-rcnn_scalenet-s0_fpn_1x_coco.py'

model = dict(backbone=dict(arch='scalenet-s1'))
