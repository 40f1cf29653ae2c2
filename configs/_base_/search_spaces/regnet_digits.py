# regnet.py for the digit data: 0.5 to 5.5 M multiply-adds.
space = dict(
    in_channels=1,
    num_classes=10,
    act='relu',
    se=dict(act='relu', gate='sigmoid', ratio=0.25, of='input'),
    stem=dict(channels=[8, 12, 16], kernel=3, stride=2),
    stages=[
        dict(
            kind='bottleneck',
            channels=[16, 24],
            depths=[1, 2],
            kernels=3,
            group_widths=8,
        ),
        dict(
            kind='bottleneck',
            channels=[24, 32, 40],
            stride=2,
            depths=[1, 2, 3],
            kernels=3,
            group_widths=8,
        ),
        dict(
            kind='bottleneck',
            channels=[40, 48, 56, 64],
            stride=2,
            depths=[1, 2, 3],
            kernels=3,
            group_widths=8,
        ),
    ],
    head=dict(channels=0),
    resolution=list(range(24, 40, 2)),
)
