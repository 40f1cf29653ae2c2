# ImageNet-1k at the resolution of the backbone's Arch, with the crops and flips of mmpretrain's
# imagenet_bs32.py; the images to train with.
data_preprocessor = dict(
    num_classes=1000, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmscale.RandomResizedCropToResolution'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmscale.CenterCropToResolution', crop_ratio=0.875),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    sampler=dict(type='mmscale.ResolutionSampler', seed=0),
    dataset=dict(
        type='mmscale.SeededDataset',
        dataset=dict(
            type='ImageNet', data_root='data/imagenet', split='train', pipeline=train_pipeline
        ),
    ),
    collate_fn=dict(type='default_collate'),
    persistent_workers=True,
    pin_memory=True,
)
