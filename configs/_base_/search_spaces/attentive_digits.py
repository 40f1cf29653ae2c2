# attentive.py for the digit data: 0.14 to 2.9 M multiply-adds.
space = dict(
    in_channels=1,
    num_classes=10,
    act='silu',
    se=dict(act='relu', gate='hsigmoid', ratio=0.25, of='hidden', divisor=8),
    rounding=dict(mode='divisible', channel_divisor=8),
    stem=dict(channels=[8, 12], kernel=3, stride=2),
    stages=[
        dict(channels=[8, 12], depths=[1, 2], kernels=[3, 5], expands=1, se=False, share='stage'),
        dict(
            channels=[12, 16],
            stride=2,
            depths=[1, 2, 3],
            kernels=[3, 5],
            expands=[2, 3, 4],
            se=False,
            share='stage',
        ),
        dict(
            channels=[24, 28, 32],
            stride=2,
            depths=[1, 2, 3],
            kernels=[3, 5],
            expands=[2, 3, 4],
            share='stage',
        ),
        dict(
            channels=[32, 40, 48],
            depths=[1, 2],
            kernels=[3, 5],
            expands=[2, 3],
            share='stage',
        ),
    ],
    head=dict(channels=[96, 128], hidden_channels=[64, 96]),
    resolution=[24, 28, 32, 36],
)
