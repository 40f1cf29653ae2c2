# The space of Once-for-All (arXiv 1908.09791) around MobileNetV3-Large: 5.4e20 networks. Per
# network stage a depth, per block a kernel and an expansion, for the network a resolution.
# Widths, SE and activations are MobileNetV3's, hidden and squeeze widths multiples of 8.
space = dict(
    num_classes=1000,
    act='hswish',
    se=dict(act='relu', gate='hsigmoid', ratio=0.25, of='hidden', divisor=8),
    rounding=dict(mode='divisible', channel_divisor=8),
    stem=dict(channels=16, kernel=3, stride=2),
    stages=[
        dict(channels=16, kernels=3, depths=1, expands=1, act='relu', se=False),
        dict(
            channels=24,
            stride=2,
            depths=[2, 3, 4],
            kernels=[3, 5, 7],
            expands=[3, 4, 6],
            act='relu',
            se=False,
        ),
        dict(
            channels=40,
            stride=2,
            depths=[2, 3, 4],
            kernels=[3, 5, 7],
            expands=[3, 4, 6],
            act='relu',
        ),
        dict(
            channels=80,
            stride=2,
            depths=[2, 3, 4],
            kernels=[3, 5, 7],
            expands=[3, 4, 6],
            se=False,
        ),
        dict(channels=112, depths=[2, 3, 4], kernels=[3, 5, 7], expands=[3, 4, 6]),
        dict(channels=160, stride=2, depths=[2, 3, 4], kernels=[3, 5, 7], expands=[3, 4, 6]),
    ],
    # The linear layer has a bias, Once-for-All's has none: 1,280 parameters.
    head=dict(channels=960, hidden_channels=1280),
    resolution=list(range(128, 225, 4)),
)
