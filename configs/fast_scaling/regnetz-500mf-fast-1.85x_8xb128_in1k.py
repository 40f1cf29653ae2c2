# RegNetZ-500MF scaled by dWr: the published RegNetZ-1GF (arXiv 2106.14881).
_base_ = './regnety-400mf-fast-4x_8xb128_in1k.py'

model = dict(
    backbone=dict(
        arch='RegNetZ-500MF',
        scaling=dict(
            depth=1.85**0.1, width=1.85**0.4, group_width=1.85**0.4, resolution=1.85**0.05
        ),
    ),
    head=dict(in_channels=1000),
)
