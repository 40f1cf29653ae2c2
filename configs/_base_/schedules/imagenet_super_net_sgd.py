# SGD on ImageNet in batches of 256 for super-supernets, with the schedule of ScaleNet's: 750,000
# iterations, weight decay of convolutions alone and half as much of the classifier.
optim_wrapper = dict(
    type='mmscale.BFloat16OptimWrapper',
    # In few kernels on a GPU; fused=True takes no slices of tensors.
    optimizer=dict(
        type='SGD', lr=0.12, momentum=0.9, nesterov=True, weight_decay=8e-5, foreach=True
    ),
    clip_grad=dict(max_norm=5.0),
    paramwise_cfg=dict(
        norm_decay_mult=0.0, bias_decay_mult=0.0, custom_keys={'head.fc': dict(decay_mult=0.5)}
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1 / 375, by_epoch=False, begin=0, end=375),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False, begin=375, end=750000),
]
train_cfg = dict(by_epoch=False, max_iters=750000)
