# Learns the widths and depths of mmpretrain's ResNet-18 on the digit data, a quarter as wide and
# without the reductions of its stem; half its multiply-adds are left.
_base_ = './dms-digits-s2.py'

pipeline = [
    dict(type='mmscale.ResizeToResolution', resolution=24, interpolation='area'),
    dict(type='PackInputs'),
]
model = dict(
    input_shape=(1, 24, 24),
    model=dict(
        backbone=dict(
            _delete_=True,
            type='ResNet_CIFAR',
            depth=18,
            in_channels=1,
            stem_channels=16,
            base_channels=16,
        ),
        head=dict(in_channels=128),
    ),
)

train_dataloader = dict(
    sampler=dict(batch_size=96),
    dataset=dict(dataset=dict(pipeline=pipeline)),
)
val_dataloader = dict(dataset=dict(pipeline=pipeline))
test_dataloader = dict(dataset=dict(pipeline=pipeline))
custom_hooks = [
    dict(type='mmscale.IterationSeedHook'),
    dict(type='mmscale.StrictLoadHook'),
    dict(type='mmscale.DMSHook'),
]
