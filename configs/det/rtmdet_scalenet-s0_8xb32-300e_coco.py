# RTMDet-s on COCO, RGB as mmscale's classifiers. Their weights: see docs/detection.md.
_base_ = 'mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py'
custom_imports = dict(imports=['mmscale.models', 'mmscale.engine'])
default_hooks = dict(strict_load=dict(type='mmscale.StrictLoadHook', prefix='backbone.'))
norms = dict(norm_cfg=dict(type='SyncBN'), act_cfg=dict(type='SiLU', inplace=True))
neck = dict(type='CSPNeXtPAFPN', out_channels=128, num_csp_blocks=1, expand_ratio=0.5, **norms)
network = dict(type='mmscale.ArchNet', arch='scalenet-s0', out_strides=(8, 16, 32), neck=neck)
rgb = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)

model = dict(
    data_preprocessor=rgb,
    backbone=dict(_delete_=True, **network, norm_cfg=dict(type='SyncBN')),
    neck=None,
)
