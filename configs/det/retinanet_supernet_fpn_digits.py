# A super-supernet under RetinaNet, trained on detection: shared kernels, warm-up, sandwich.
_base_ = [
    '../_base_/models/retinanet_supernet_digits.py',
    '../_base_/datasets/digits_detection_train.py',
    '../_base_/schedules/digits_detection_adamw.py',
    '../_base_/detection_runtime.py',
]

model = dict(
    _delete_=True,
    type='mmscale.SuperNetDetector',
    detector={{_base_.model}},
    mode='sandwich',
    warmup_iters=30,
    warmup_scaling_stage=1,
)

# Every batch has the resolution of its subnet.
train_pipeline = [
    dict(type='LoadImageFromFile', color_type='grayscale'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='mmscale.ResizeToResolution', interpolation='area'),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))
custom_hooks = [
    dict(type='mmscale.HierarchicalSamplerHook', distribution='inverse_budget', sides=('left',)),
    dict(type='mmscale.IterationSeedHook'),
    dict(type='mmscale.StrictLoadHook'),
]
model_wrapper_cfg = dict(type='mmscale.SliceParallel')

param_scheduler = [
    dict(type='LinearLR', start_factor=0.04, by_epoch=False, begin=0, end=40),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False, begin=40, end=150),
]
train_cfg = dict(max_iters=150)
