# Learns heads, their size, MLP, embedding and depth of a small DeiT; half its multiply-adds are
# left. The digits are without clutter, with which hundreds of iterations leave it at chance.
_base_ = './dms-digits-s2.py'

data_preprocessor = dict(mean=[43.7], std=[45.0])
composition = dict(canvas=24, digit_size=(12, 15), fragments=(0, 0), rotation=10.0, shear=0.1)
pipeline = [
    dict(type='mmscale.ResizeToResolution', resolution=24, interpolation='area'),
    dict(type='PackInputs'),
]
model = dict(
    input_shape=(1, 24, 24),
    model=dict(
        backbone=dict(
            _delete_=True,
            type='VisionTransformer',
            arch=dict(embed_dims=64, num_layers=6, num_heads=4, feedforward_channels=192),
            img_size=24,
            patch_size=4,
            in_channels=1,
        ),
        neck=None,
        head=dict(
            _delete_=True,
            type='VisionTransformerClsHead',
            num_classes=10,
            in_channels=64,
            loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
            topk=(1,),
        ),
    ),
)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-3, weight_decay=0.05),
)

train_dataloader = dict(
    sampler=dict(batch_size=96),
    dataset=dict(dataset=dict(composition=composition, pipeline=pipeline)),
)
val_dataloader = dict(dataset=dict(composition=composition, pipeline=pipeline))
test_dataloader = dict(dataset=dict(composition=composition, pipeline=pipeline))
custom_hooks = [
    dict(type='mmscale.IterationSeedHook'),
    dict(type='mmscale.StrictLoadHook'),
    dict(type='mmscale.DMSHook'),
]
