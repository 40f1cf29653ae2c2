# EfficientNet-B0 scaled by dWr to 8 times its flops.
_base_ = './efficientnet-b0-fast-2x_8xb32_in1k.py'

model = dict(
    backbone=dict(scaling=dict(depth=8**0.1, width=8**0.4, resolution=8**0.05)),
    head=dict(in_channels=2944),
)
