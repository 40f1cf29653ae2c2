# DMS-EN-B1: EfficientNet-B7 at 256 px comes down to 0.68 G multiply-adds.
_base_ = './dms-efficientnet-b4-390mf_8xb96-30e_in1k-224px.py'

model = dict(
    target=dict(flops=0.68e9),
    input_shape=(3, 256, 256),
    model=dict(
        backbone=dict(arch='efficientnet-b7', scaling=dict(resolution=256 / 600)),
        head=dict(in_channels=2560),
    ),
)
