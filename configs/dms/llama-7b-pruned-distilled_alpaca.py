# Trains what dms-llama-7b-5.47b_alpaca.py and tools/prune.py have left of LLaMA-7B, with the whole
# model as the teacher; not run. Weights, gradients and moments take 88 GB, the teacher 27 GB.
_base_ = [
    '../_base_/models/llama_7b.py',
    '../_base_/datasets/alpaca.py',
    '../_base_/default_runtime.py',
]

model = dict(
    _delete_=True,
    type='mmscale.PrunedModel',
    pruned='work_dirs/dms-llama-7b-5.47b_alpaca/pruned/pruned.json',
    model={{_base_.model}},
)
load_from = 'work_dirs/dms-llama-7b-5.47b_alpaca/pruned/weights.pth'
custom_hooks = [dict(type='mmscale.IterationSeedHook'), dict(type='mmscale.StrictLoadHook')]

optim_wrapper = dict(
    type='mmscale.BFloat16OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0),
    clip_grad=dict(max_norm=1.0),
    accumulative_counts=16,
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.04, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False, begin=100, end=8000),
]
train_cfg = dict(by_epoch=False, max_iters=8000)
