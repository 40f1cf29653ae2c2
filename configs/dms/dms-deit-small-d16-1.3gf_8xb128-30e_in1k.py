# DMS-DeiT-tiny: DeiT-small, 16 blocks deep, comes down to 1.3 G multiply-adds in 30 epochs.
_base_ = [
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py',
    'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py',
    '../_base_/default_runtime.py',
]

model = dict(
    type='mmscale.DMSModel',
    target=dict(flops=1.3e9),
    model=dict(
        type='ImageClassifier',
        backbone=dict(
            type='VisionTransformer',
            arch=dict(embed_dims=384, num_layers=16, num_heads=6, feedforward_channels=1536),
            img_size=224,
            patch_size=16,
        ),
        head=dict(
            type='VisionTransformerClsHead',
            num_classes=1000,
            in_channels=384,
            loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        ),
        init_cfg=[
            dict(type='TruncNormal', layer='Linear', std=0.02),
            dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.0),
        ],
        train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
    ),
)
train_dataloader = dict(batch_size=128)
custom_hooks = [
    dict(type='mmscale.StrictLoadHook'),
    dict(type='mmscale.DMSHook', interval=100),
]

optim_wrapper = dict(
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys={'.cls_token': dict(decay_mult=0.0), '.pos_embed': dict(decay_mult=0.0)},
    ),
    clip_grad=dict(max_norm=5.0),
)
# The first 20 of the 30 epochs are warm-up.
train_cfg = dict(max_epochs=30)
default_hooks = dict(checkpoint=dict(by_epoch=True, interval=1))
log_processor = dict(by_epoch=True)
