# A small space for the digit data: about 0.7 M multiply-adds at 24 px, up to 16 times that.
# Scaling stage j has a budget of 2^j; there are 16,464 base models.
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
        dict(depth=[1.0], width=[1.0], resolution=[24]),
        dict(depth=[1.0, 1.4], width=[1.0, 1.1, 1.2, 1.3], resolution=[24, 26, 28, 30, 32]),
        dict(depth=[1.3, 1.6], width=[1.1, 1.2, 1.3, 1.4], resolution=[28, 30, 32, 34, 36]),
        dict(depth=[1.6, 2.0], width=[1.2, 1.3, 1.4, 1.5, 1.6], resolution=[34, 36, 40, 42, 44]),
        dict(depth=[2.0, 2.6], width=[1.4, 1.5, 1.6, 1.7, 1.8], resolution=[38, 40, 44, 46, 48]),
    ],
)
