# Alpaca's tokens in a row, in windows of 2048; train.npy has to be made.
train_dataloader = dict(
    batch_size=1,
    num_workers=2,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(type='mmscale.TokenFile', file='data/alpaca/train.npy', length=2048),
    collate_fn=dict(type='default_collate'),
)
