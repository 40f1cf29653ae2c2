# The space of the digit data at the resolutions of detection, in three scaling stages. Its largest
# widths and depths are those of digits.py, so that a super-supernet of that has weights for it.
space = dict(
    in_channels=1,
    num_classes=10,
    act='hswish',
    se=dict(act='relu', gate='hsigmoid'),
    rule='search',
    stem=dict(channels=12, kernel=3, stride=2),
    stages=[
        dict(channels=12, stride=1, expand=1, depths=[1, 2], kernels=[3, 5]),
        dict(channels=16, stride=2, expand=3, depths=[1, 2, 3], kernels=[3, 5]),
        dict(channels=32, stride=2, expand=3, depths=[1, 2, 3], kernels=[3, 5]),
        dict(channels=48, stride=1, expand=3, depths=[1, 2, 3], kernels=[3, 5]),
    ],
    head=dict(channels=96),
    scaling_stages=[
        dict(depth=[1.0], width=[1.0], resolution=[48]),
        dict(depth=[1.0, 1.4], width=[1.0, 1.2, 1.4], resolution=[56, 64, 72]),
        dict(depth=[1.6, 2.0, 2.6], width=[1.2, 1.4, 1.6, 1.8], resolution=[72, 80, 88, 96]),
    ],
)
