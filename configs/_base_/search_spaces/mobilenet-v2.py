# Networks around MobileNetV2 (arXiv 1801.04381), which is in the space: per network stage a width
# of about 0.75, 1 or 1.25 times its own and a depth, per block a kernel and an expansion.
space = dict(
    num_classes=1000,
    act='relu6',
    rounding=dict(mode='divisible', channel_divisor=8),
    stem=dict(channels=[24, 32, 40], kernel=3, stride=2),
    stages=[
        dict(channels=[16, 24], depths=1, kernels=3, expands=1),
        dict(channels=[16, 24, 32], stride=2, depths=[1, 2, 3], kernels=[3, 5, 7], expands=[3, 6]),
        dict(
            channels=[24, 32, 40],
            stride=2,
            depths=[2, 3, 4],
            kernels=[3, 5, 7],
            expands=[3, 6],
        ),
        dict(
            channels=[48, 64, 80],
            stride=2,
            depths=[2, 3, 4],
            kernels=[3, 5, 7],
            expands=[3, 6],
        ),
        dict(channels=[72, 96, 120], depths=[2, 3, 4], kernels=[3, 5, 7], expands=[3, 6]),
        dict(
            channels=[120, 160, 200],
            stride=2,
            depths=[2, 3, 4],
            kernels=[3, 5, 7],
            expands=[3, 6],
        ),
        dict(channels=[240, 320, 400], depths=1, kernels=[3, 5, 7], expands=[3, 6]),
    ],
    head=dict(channels=1280),
    resolution=[160, 192, 224],
)
