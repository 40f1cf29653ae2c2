# RegNetY-4.0GF scaled by dWr to four times its flops.
_base_ = './regnety-400mf-fast-4x_8xb128_in1k.py'

model = dict(
    backbone=dict(
        arch='RegNetY-4.0GF',
        scaling=dict(depth=4**0.1, width=4**0.4, group_width=4**0.4, resolution=4**0.05),
    ),
    head=dict(in_channels=1904),
)

# mmpretrain's settings for RegNets of 4 G multiply-adds and more.
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(optimizer=dict(lr=0.4))
auto_scale_lr = dict(base_batch_size=512)
