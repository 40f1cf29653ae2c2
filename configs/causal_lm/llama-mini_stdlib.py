# A small language model like LLaMA on the source of Python's standard library.
_base_ = ['../_base_/datasets/stdlib.py', '../_base_/default_runtime.py']

model = dict(
    type='mmscale.CausalLM',
    config=dict(
        model_type='llama',
        vocab_size=256,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=None,
    ),
)
custom_hooks = [dict(type='mmscale.IterationSeedHook'), dict(type='mmscale.StrictLoadHook')]

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
