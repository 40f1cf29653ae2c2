# ResNets around ResNet-50, with the choices of Once-for-All's ResNet50
# (github.com/mit-han-lab/once-for-all): widths of 0.65, 0.8 and 1 times ResNet-50's, rounded to 8,
# depths, and per block the ratio of the inner to the outer width. The stem is ResNet-50's one
# convolution, so that ResNet-50 is in the space; theirs has three, and average pooling in the
# shortcuts.
space = dict(
    num_classes=1000,
    act='relu',
    rounding=dict(mode='divisible', channel_divisor=8),
    stem=dict(channels=[40, 48, 64], kernel=7, stride=2, max_pool=True),
    stages=[
        dict(
            kind='bottleneck',
            channels=[168, 208, 256],
            depths=[2, 3, 4],
            kernels=3,
            expands=[0.2, 0.25, 0.35],
        ),
        dict(
            kind='bottleneck',
            channels=[336, 408, 512],
            stride=2,
            depths=[2, 3, 4],
            kernels=3,
            expands=[0.2, 0.25, 0.35],
        ),
        dict(
            kind='bottleneck',
            channels=[664, 816, 1024],
            stride=2,
            depths=[4, 5, 6],
            kernels=3,
            expands=[0.2, 0.25, 0.35],
        ),
        dict(
            kind='bottleneck',
            channels=[1328, 1640, 2048],
            stride=2,
            depths=[2, 3, 4],
            kernels=3,
            expands=[0.2, 0.25, 0.35],
        ),
    ],
    head=dict(channels=0),
    resolution=[128, 160, 192, 224],
)
