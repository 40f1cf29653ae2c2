# mobilenet-v2.py for the digit data: 0.19 to 3.5 M multiply-adds.
space = dict(
    in_channels=1,
    num_classes=10,
    act='relu6',
    rounding=dict(mode='divisible', channel_divisor=8),
    stem=dict(channels=[8, 12, 16], kernel=3, stride=2),
    stages=[
        dict(channels=[8, 12], depths=1, kernels=3, expands=1),
        dict(channels=[12, 16], stride=2, depths=[1, 2, 3], kernels=[3, 5], expands=[3, 6]),
        dict(channels=[24, 32], stride=2, depths=[1, 2, 3], kernels=[3, 5], expands=[3, 6]),
        dict(channels=[40, 48], depths=[1, 2, 3], kernels=[3, 5], expands=[3, 6]),
    ],
    head=dict(channels=96),
    resolution=[24, 28, 32],
)
