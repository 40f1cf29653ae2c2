# ImageNet-1k to search with: statistics of BNs are those of images to train with, and others, set
# aside of the training set as docs/scalenet.md says, score.
_base_ = './imagenet_train.py'

train_dataloader = None
calibration_dataloader = dict(
    batch_size=128,
    num_workers=8,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmscale.SeededDataset',
        dataset=dict(
            type='ImageNet',
            data_root='data/imagenet',
            split='train',
            ann_file='meta/train_without_search.txt',
            pipeline={{_base_.test_pipeline}},
        ),
    ),
    collate_fn=dict(type='default_collate'),
)
test_dataloader = dict(
    batch_size=128,
    num_workers=8,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmscale.SeededDataset',
        dataset=dict(
            type='ImageNet',
            data_root='data/imagenet',
            split='train',
            ann_file='meta/search.txt',
            pipeline={{_base_.test_pipeline}},
        ),
    ),
    collate_fn=dict(type='default_collate'),
)
test_evaluator = []
