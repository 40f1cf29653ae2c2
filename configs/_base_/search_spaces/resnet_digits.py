# resnet.py for the digit data: 0.2 to 4.2 M multiply-adds.
space = dict(
    in_channels=1,
    num_classes=10,
    act='relu',
    rounding=dict(mode='divisible', channel_divisor=4),
    stem=dict(channels=[8, 12], kernel=3, stride=2),
    stages=[
        dict(
            kind='bottleneck',
            channels=[16, 20, 24],
            depths=[1, 2],
            kernels=3,
            expands=[0.25, 0.35, 0.5],
        ),
        dict(
            kind='bottleneck',
            channels=[32, 40, 48],
            stride=2,
            depths=[1, 2, 3],
            kernels=3,
            expands=[0.25, 0.35, 0.5],
        ),
        dict(
            kind='bottleneck',
            channels=[64, 80, 96],
            stride=2,
            depths=[1, 2, 3],
            kernels=3,
            expands=[0.25, 0.35, 0.5],
        ),
    ],
    head=dict(channels=0),
    resolution=[24, 28, 32],
)
