# A space for detection on the digit data, with strides up to 16: resolutions of 64 to 112, three
# scaling stages. The head's 1x1 convolution is the classifier's; a detector does not run it.
space = dict(
    in_channels=1,
    num_classes=10,
    act='hswish',
    se=dict(act='relu', gate='hsigmoid'),
    rule='search',
    stem=dict(channels=12, kernel=3, stride=2),
    stages=[
        dict(channels=16, stride=2, expand=1, depths=[1, 2], kernels=[3, 5]),
        dict(channels=24, stride=2, expand=3, depths=[1, 2, 3], kernels=[3, 5]),
        dict(channels=40, stride=2, expand=3, depths=[1, 2, 3], kernels=[3, 5]),
        dict(channels=64, stride=1, expand=3, depths=[1, 2, 3], kernels=[3, 5]),
    ],
    head=dict(channels=64),
    scaling_stages=[
        dict(depth=[1.0], width=[1.0], resolution=[64]),
        dict(depth=[1.0, 1.4], width=[1.0, 1.1, 1.2, 1.3, 1.4], resolution=[64, 72, 80, 88]),
        dict(depth=[1.3, 1.6], width=[1.2, 1.3, 1.4, 1.5, 1.6], resolution=[80, 88, 96, 104, 112]),
    ],
)
