# The super-supernet of the paper's space on ImageNet, with the schedule of the released code:
# 750,000 iterations of 256 images, separate kernels, both sides of the channel coupling. The
# arithmetic is not the released code's but what is fast: channels last; bfloat16, on CPUs too
# (`--cfg-options optim_wrapper.type=OptimWrapper` for float32); large images are decoded smaller.
_base_ = [
    '../_base_/search_spaces/scalenet.py',
    '../_base_/datasets/imagenet_train.py',
    '../_base_/default_runtime.py',
]

model = dict(
    type='mmscale.SuperNetClassifier',
    mode='single',
    backbone=dict(
        type='mmscale.SuperNet', space={{_base_.space}}, kernels='separate', channels_last=True
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=1280,
        # The released code spreads 0.1 over the 999 other classes.
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1 * 1000 / 999, mode='original'),
    ),
)

# Crops and resizing alone, as in the released config; the data are what no search scores.
train_dataloader = dict(
    batch_size=8,
    dataset=dict(
        dataset=dict(
            ann_file='meta/train_without_search.txt',
            pipeline=[
                dict(type='mmscale.LoadRandomResizedCropToResolution'),
                dict(type='PackInputs'),
            ],
        )
    ),
)

custom_hooks = [
    dict(type='mmscale.HierarchicalSamplerHook', distribution='choices', sides=('left', 'right')),
    dict(type='mmscale.IterationSeedHook'),
    dict(type='mmscale.StrictLoadHook'),
]
model_wrapper_cfg = dict(type='mmscale.SliceParallel')

optim_wrapper = dict(
    type='mmscale.BFloat16OptimWrapper',
    # In few kernels on a GPU; fused=True takes no slices of tensors.
    optimizer=dict(
        type='SGD', lr=0.12, momentum=0.9, nesterov=True, weight_decay=8e-5, foreach=True
    ),
    # Convolutions 8e-5, biases and norms 0, the classifier's weight and bias 4e-5.
    paramwise_cfg=dict(
        norm_decay_mult=0.0, bias_decay_mult=0.0, custom_keys={'head.fc': dict(decay_mult=0.5)}
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1 / 375, by_epoch=False, begin=0, end=375),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False, begin=375, end=750000),
]
train_cfg = dict(by_epoch=False, max_iters=750000)
default_hooks = dict(checkpoint=dict(interval=5000))
auto_scale_lr = dict(enable=False, base_batch_size=256)
