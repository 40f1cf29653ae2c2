# The space of NAS-Bench-Macro (github.com/xiusu/NAS-Bench-Macro): 3,969 networks for CIFAR-10,
# every one trained three times by its authors. Each of 2 + 3 + 3 places is skipped or holds one
# of two blocks; a network stage whose first place is skipped begins with a strided 1x1
# convolution.
space = dict(
    num_classes=10,
    act='relu6',
    stem=dict(channels=32, kernel=3, stride=1),
    stages=[
        dict(
            channels=64,
            stride=2,
            depths=[1, 2],
            skips='anywhere',
            first=dict(
                blocks=[
                    dict(kind='conv', kernel=1),
                    dict(kernel=3, expand=3),
                    dict(kernel=5, expand=6),
                ]
            ),
            blocks=[dict(kernel=3, expand=3), dict(kernel=5, expand=6)],
        ),
        dict(
            channels=128,
            stride=2,
            depths=[1, 2, 3],
            skips='anywhere',
            first=dict(
                blocks=[
                    dict(kind='conv', kernel=1),
                    dict(kernel=3, expand=3),
                    dict(kernel=5, expand=6),
                ]
            ),
            blocks=[dict(kernel=3, expand=3), dict(kernel=5, expand=6)],
        ),
        dict(
            channels=256,
            stride=2,
            depths=[1, 2, 3],
            skips='anywhere',
            first=dict(
                blocks=[
                    dict(kind='conv', kernel=1),
                    dict(kernel=3, expand=3),
                    dict(kernel=5, expand=6),
                ]
            ),
            blocks=[dict(kernel=3, expand=3), dict(kernel=5, expand=6)],
        ),
    ],
    head=dict(channels=1280),
    resolution=32,
)
