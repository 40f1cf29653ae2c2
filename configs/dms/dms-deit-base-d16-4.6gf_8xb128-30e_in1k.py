# DeiT-base, 16 blocks deep, comes down to the 4.6 G multiply-adds of DeiT-small: the rule of
# dms-deit-small-d16-1.3gf_8xb128-30e_in1k.py one size up, which the paper does not report.
_base_ = './dms-deit-small-d16-1.3gf_8xb128-30e_in1k.py'

model = dict(
    target=dict(flops=4.6e9),
    model=dict(
        backbone=dict(
            arch=dict(embed_dims=768, num_layers=16, num_heads=12, feedforward_channels=3072)
        ),
        head=dict(in_channels=768),
    ),
)
