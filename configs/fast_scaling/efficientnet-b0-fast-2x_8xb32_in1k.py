# EfficientNet-B0 scaled by dWr to twice its flops, trained by the recipe of pycls' EfficientNets:
# that of its RegNets with another batch, learning rate and weight decay, and without precise BN.
_base_ = './regnety-400mf-fast-4x_8xb128_in1k.py'

model = dict(
    backbone=dict(
        arch='EfficientNet-B0',
        scaling=dict(depth=2**0.1, width=2**0.4, group_width=None, resolution=2**0.05),
    ),
    head=dict(in_channels=1688),
)

custom_hooks = [dict(type='mmscale.InputResolutionHook')]
train_dataloader = dict(batch_size=32)
optim_wrapper = dict(optimizer=dict(lr=0.4, weight_decay=1e-5))
auto_scale_lr = dict(base_batch_size=256)
