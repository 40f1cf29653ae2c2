# One to eight digits of several sizes among clutter, made from scikit-learn's handwriting; gray,
# 128 x 128, 10 classes, resized to 96 x 96; those to train with.
resolution = 96
train_pipeline = [
    dict(type='LoadImageFromFile', color_type='grayscale'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='mmscale.ResizeToResolution', resolution=resolution, interpolation='area'),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile', color_type='grayscale'),
    dict(type='mmscale.ResizeToResolution', resolution=resolution, interpolation='area'),
    # The boxes stay those of the original image, where the predictions are compared with them.
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'instances'),
    ),
]

train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='mmscale.ResolutionSampler', batch_size=8, seed=0),
    dataset=dict(
        type='mmscale.SeededDataset',
        dataset=dict(type='mmscale.DigitsDetection', split='train', pipeline=train_pipeline),
    ),
)
