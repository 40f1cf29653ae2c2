# AdamW on windows of text in batches of 16: 500 iterations, the first 50 of them warm-up.
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.04, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', eta_min=1e-4, by_epoch=False, begin=50, end=500),
]
train_cfg = dict(by_epoch=False, max_iters=500, val_interval=500)
val_cfg = dict()
test_cfg = dict()
