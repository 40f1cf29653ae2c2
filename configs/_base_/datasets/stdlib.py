# Source files of Python's standard library, byte by byte, in windows of 128.
train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(type='mmscale.StandardLibrary', split='train', length=128),
    collate_fn=dict(type='default_collate'),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='mmscale.StandardLibrary', split='val', length=128),
    collate_fn=dict(type='default_collate'),
)
val_evaluator = dict(type='mmscale.Perplexity')
test_dataloader = val_dataloader
test_evaluator = val_evaluator
