"""The search space that the fuzz tests mutate."""

SPACE = dict(
    in_channels=1,
    num_classes=10,
    act='hswish',
    rule='search',
    se=dict(act='relu', gate='hsigmoid'),
    stem=dict(channels=4, kernel=3, stride=2),
    stages=[
        dict(channels=4, stride=1, expand=1, depths=[1, 2], kernels=[3, 5]),
        dict(channels=6, stride=2, expand=2, depths=[1, 2], kernels=[3, 5]),
    ],
    head=dict(channels=12),
    scaling_stages=[
        dict(depth=[1], width=[1], resolution=[12]),
        dict(depth=[1.2, 1.6], width=[1.2, 1.6], resolution=[12, 16]),
    ],
)
