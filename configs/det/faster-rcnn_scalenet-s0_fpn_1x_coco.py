# Faster R-CNN on COCO. Weights of a classifier: backbone.init_cfg, see docs/detection.md.
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['mmscale.models', 'mmscale.engine'])
default_hooks = dict(strict_load=dict(type='mmscale.StrictLoadHook', prefix='backbone.'))

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmscale.ArchNet',
        arch='scalenet-s0',
        out_strides=(4, 8, 16, 32),
        neck=dict(type='FPN', out_channels=256, num_outs=5),
    ),
    neck=None,
)
