# Digits among clutter to train, validate and test with.
_base_ = './cluttered_digits_train.py'

val_dataloader = dict(
    batch_size=250,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmscale.ClutteredDigits', split='search', pipeline={{_base_.test_pipeline}}
    ),
    collate_fn=dict(type='default_collate'),
)
val_evaluator = dict(type='Accuracy', topk=(1,))
test_dataloader = dict(
    batch_size=250,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='mmscale.ClutteredDigits', split='test', pipeline={{_base_.test_pipeline}}),
    collate_fn=dict(type='default_collate'),
)
test_evaluator = val_evaluator
