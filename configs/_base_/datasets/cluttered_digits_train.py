# Digits among clutter, made from scikit-learn's handwriting; gray, 48 x 48, 10 classes; those to
# train with.
data_preprocessor = dict(num_classes=10, mean=[52.7], std=[53.6])

train_pipeline = [
    dict(type='mmscale.ResizeToResolution', interpolation='area'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='mmscale.ResizeToResolution', interpolation='area'),
    # What is there already; not so what mmpretrain's inferencer reads.
    dict(type='mmscale.GrayImage'),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    batch_size=96,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='mmscale.ResolutionSampler', seed=0),
    dataset=dict(
        type='mmscale.SeededDataset',
        dataset=dict(type='mmscale.ClutteredDigits', split='train', pipeline=train_pipeline),
    ),
    collate_fn=dict(type='default_collate'),
)
