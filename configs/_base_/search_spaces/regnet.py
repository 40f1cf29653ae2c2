# RegNets around RegNetY-1.6GF (arXiv 2003.13678), which is in the space: widths and depths per
# network stage; the groups keep their 24 channels at every width, so widths are multiples of it.
space = dict(
    num_classes=1000,
    act='relu',
    se=dict(act='relu', gate='sigmoid', ratio=0.25, of='input'),
    stem=dict(channels=32, kernel=3, stride=2),
    stages=[
        dict(
            kind='bottleneck',
            channels=[48, 72, 96],
            stride=2,
            depths=[1, 2, 3],
            kernels=3,
            group_widths=24,
        ),
        dict(
            kind='bottleneck',
            channels=[72, 96, 120, 144, 168],
            stride=2,
            depths=[3, 4, 5, 6, 7, 8],
            kernels=3,
            group_widths=24,
        ),
        dict(
            kind='bottleneck',
            channels=[240, 288, 336, 384, 432],
            stride=2,
            depths=[8, 10, 12, 14, 16, 17, 18],
            kernels=3,
            group_widths=24,
        ),
        dict(
            kind='bottleneck',
            channels=[624, 720, 816, 888, 960],
            stride=2,
            depths=[1, 2, 3],
            kernels=3,
            group_widths=24,
        ),
    ],
    head=dict(channels=0),
    resolution=[192, 224],
)
