# The space of AttentiveNAS (arXiv 2011.09011 and its released settings): per network stage a
# width, a depth, one kernel and one expansion; for the network the widths of stem and head and a
# resolution. Differences: first blocks of network stages have no shortcut, theirs average pooling
# and a 1x1 convolution; the head's convolution, theirs six times as wide as the last network
# stage, is a choice of its own, so that there are twice as many networks, 8.8e11; its linear
# layer has a bias.
space = dict(
    num_classes=1000,
    act='silu',
    se=dict(act='relu', gate='hsigmoid', ratio=0.25, of='hidden', divisor=8),
    rounding=dict(mode='divisible', channel_divisor=8),
    stem=dict(channels=[16, 24], kernel=3, stride=2),
    stages=[
        dict(channels=[16, 24], depths=[1, 2], kernels=[3, 5], expands=1, se=False, share='stage'),
        dict(
            channels=[24, 32],
            stride=2,
            depths=[3, 4, 5],
            kernels=[3, 5],
            expands=[4, 5, 6],
            se=False,
            share='stage',
        ),
        dict(
            channels=[32, 40],
            stride=2,
            depths=[3, 4, 5, 6],
            kernels=[3, 5],
            expands=[4, 5, 6],
            share='stage',
        ),
        dict(
            channels=[64, 72],
            stride=2,
            depths=[3, 4, 5, 6],
            kernels=[3, 5],
            expands=[4, 5, 6],
            se=False,
            share='stage',
        ),
        dict(
            channels=[112, 120, 128],
            depths=[3, 4, 5, 6, 7, 8],
            kernels=[3, 5],
            expands=[4, 5, 6],
            share='stage',
        ),
        dict(
            channels=[192, 200, 208, 216],
            stride=2,
            depths=[3, 4, 5, 6, 7, 8],
            kernels=[3, 5],
            expands=6,
            share='stage',
        ),
        dict(channels=[216, 224], depths=[1, 2], kernels=[3, 5], expands=6, share='stage'),
    ],
    head=dict(channels=[1296, 1344], hidden_channels=[1792, 1984]),
    resolution=[192, 224, 256, 288],
)
