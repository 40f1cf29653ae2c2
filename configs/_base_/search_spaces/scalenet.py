# The search space of ScaleNet: 2.239e11 base models and four scaling stages (arXiv 2207.07267 and
# its released code). Only kernels and depths of the base model are searched.
space = dict(
    num_classes=1000,
    act='hswish',
    se=dict(act='relu', gate='hsigmoid'),
    rule='search',
    stem=dict(channels=32, kernel=3, stride=2),
    stages=[
        dict(channels=16, stride=1, expand=1, depths=[1], kernels=[3, 5, 7]),
        dict(channels=32, stride=2, expand=6, depths=[1, 2, 3, 4], kernels=[3, 5, 7]),
        dict(channels=40, stride=2, expand=6, depths=[1, 2, 3, 4], kernels=[3, 5, 7]),
        dict(channels=80, stride=2, expand=6, depths=[1, 2, 3, 4], kernels=[3, 5, 7]),
        dict(channels=96, stride=1, expand=6, depths=[1, 2, 3, 4], kernels=[3, 5, 7]),
        dict(channels=192, stride=2, expand=6, depths=[1, 2, 3, 4], kernels=[3, 5, 7]),
        dict(channels=320, stride=1, expand=6, depths=[1], kernels=[3, 5, 7]),
    ],
    head=dict(channels=1280),
    # Multipliers of depth and width, resolutions in pixels; scaling stage j is for 2^j times the
    # base model's flops.
    scaling_stages=[
        dict(depth=[1.0], width=[1.0], resolution=[224]),
        dict(
            depth=[1.04, 1.08, 1.12, 1.16],
            width=[1.04, 1.08, 1.12, 1.16],
            resolution=[224, 240, 256],
        ),
        dict(
            depth=[1.2, 1.24, 1.28, 1.32, 1.36],
            width=[1.2, 1.24, 1.28, 1.32, 1.36],
            resolution=[272, 288, 304],
        ),
        dict(
            depth=[1.4, 1.44, 1.48, 1.52, 1.56, 1.6, 1.64],
            width=[1.4, 1.44, 1.48, 1.52, 1.56, 1.6, 1.64],
            resolution=[320, 336, 354],
        ),
    ],
)
