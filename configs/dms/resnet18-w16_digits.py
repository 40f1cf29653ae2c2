# Trains the whole network of dms-resnet18-w16_digits.py in the plain way; as the --recipe of
# tools/prune.py what the search has left of it.
_base_ = './dms-resnet18-w16_digits.py'

model = dict(
    _delete_=True,
    type='ImageClassifier',
    backbone={{_base_.model.model.backbone}},
    neck={{_base_.model.model.neck}},
    head={{_base_.model.model.head}},
)
custom_hooks = [dict(type='mmscale.IterationSeedHook'), dict(type='mmscale.StrictLoadHook')]

param_scheduler = [
    dict(type='LinearLR', start_factor=0.04, by_epoch=False, begin=0, end=60),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False, begin=60, end=600),
]
train_cfg = dict(max_iters=600, val_interval=600)
