# RegNetZ-4GF scaled by dWr: the published RegNetZ-16GF (arXiv 2106.14881).
_base_ = './regnety-400mf-fast-4x_8xb128_in1k.py'

model = dict(
    backbone=dict(
        arch='RegNetZ-4GF',
        scaling=dict(
            depth=3.88**0.1, width=3.88**0.4, group_width=3.88**0.4, resolution=3.88**0.05
        ),
    ),
    head=dict(in_channels=1000),
)

# mmpretrain's settings for RegNets of 4 G multiply-adds and more.
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(optimizer=dict(lr=0.4))
auto_scale_lr = dict(base_batch_size=512)
