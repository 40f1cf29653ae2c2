# ofa-mbv3.py for the digit data: 0.17 to 2.8 M multiply-adds.
space = dict(
    in_channels=1,
    num_classes=10,
    act='hswish',
    se=dict(act='relu', gate='hsigmoid', ratio=0.25, of='hidden', divisor=8),
    rounding=dict(mode='divisible', channel_divisor=8),
    stem=dict(channels=8, kernel=3, stride=2),
    stages=[
        dict(channels=8, kernels=3, depths=1, expands=1, act='relu', se=False),
        dict(
            channels=16,
            stride=2,
            depths=[1, 2, 3],
            kernels=[3, 5],
            expands=[2, 3, 4],
            act='relu',
            se=False,
        ),
        dict(channels=24, stride=2, depths=[1, 2, 3], kernels=[3, 5], expands=[2, 3, 4]),
        dict(channels=40, depths=[1, 2, 3], kernels=[3, 5], expands=[2, 3, 4]),
    ],
    head=dict(channels=96, hidden_channels=128),
    resolution=[24, 28, 32, 36, 40],
)
