# Learns the widths and depth of ../causal_lm/llama-mini_stdlib.py: half its parameters are left.
_base_ = '../causal_lm/llama-mini_stdlib.py'

model = dict(
    _delete_=True,
    type='mmscale.DMSModel',
    target=0.5,
    metric='params',
    input_shape=(128,),
    model={{_base_.model}},
)
custom_hooks = [
    dict(type='mmscale.IterationSeedHook'),
    dict(type='mmscale.StrictLoadHook'),
    dict(type='mmscale.DMSHook'),
]

param_scheduler = [dict(type='LinearLR', start_factor=0.04, by_epoch=False, begin=0, end=50)]
train_cfg = dict(max_iters=150, val_interval=150)
