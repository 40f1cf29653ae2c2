# SGD on the digit data in batches of 96 for super-supernets: 1,000 iterations, 100 of warm-up.
_base_ = './digits_sgd.py'

param_scheduler = [
    dict(type='LinearLR', start_factor=0.04, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False, begin=100, end=1000),
]
train_cfg = dict(max_iters=1000)
