# DMS-EN-B2: EfficientNet-B7 at 288 px comes down to 1.1 G multiply-adds.
_base_ = './dms-efficientnet-b4-390mf_8xb96-30e_in1k-224px.py'

model = dict(
    target=dict(flops=1.1e9),
    input_shape=(3, 288, 288),
    model=dict(
        backbone=dict(arch='efficientnet-b7', scaling=dict(resolution=288 / 600)),
        head=dict(in_channels=2560),
    ),
)
