# Digits among clutter to search with: statistics of BNs are those of images to train with, and
# others score.
_base_ = './cluttered_digits_train.py'

train_dataloader = None
calibration_dataloader = dict(
    batch_size=256,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmscale.SeededDataset',
        dataset=dict(
            type='mmscale.ClutteredDigits', split='train', pipeline={{_base_.test_pipeline}}
        ),
    ),
    collate_fn=dict(type='default_collate'),
)
test_dataloader = dict(
    batch_size=250,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmscale.SeededDataset',
        dataset=dict(
            type='mmscale.ClutteredDigits', split='search', pipeline={{_base_.test_pipeline}}
        ),
    ),
    collate_fn=dict(type='default_collate'),
)
test_evaluator = []
