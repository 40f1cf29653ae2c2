# Learns the widths and depths of RTMDet-s on COCO in a tenth of its schedule, down to the cost of
# RTMDet-tiny, as the paper has it of YOLOv8: 30 epochs, from a wider and deeper network. Weights
# of a trained RTMDet-s instead of random ones: model.pipeline=p model.pretrained=<checkpoint>.
_base_ = 'mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py'
custom_imports = dict(imports=['mmscale.models', 'mmscale.engine'])

model = dict(
    _delete_=True,
    type='mmscale.DMSModel',
    target=dict(flops=8.03e9),
    input_shape=(3, 640, 640),
    model={{_base_.model}},
)
custom_hooks = [
    dict(
        type='EMAHook',
        ema_type='ExpMomentumEMA',
        momentum=0.0002,
        update_buffers=True,
        priority=49,
    ),
    dict(
        type='PipelineSwitchHook',
        switch_epoch=28,
        switch_pipeline={{_base_.train_pipeline_stage2}},
    ),
    dict(type='mmscale.DMSHook', interval=100),
]

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-5, by_epoch=False, begin=0, end=1000),
    dict(
        type='CosineAnnealingLR',
        eta_min=2e-4,
        begin=15,
        end=30,
        T_max=15,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=30, dynamic_intervals=[(28, 1)])
