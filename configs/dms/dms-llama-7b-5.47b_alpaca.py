# LLaMA-7B comes down from 6.74 to the paper's 5.47 G parameters by its heads and MLPs alone; not
# run. The paper searches on Alpaca and distils from the whole model, which is left out here. The
# weights stay as they are, as their optimizer would not fit on one GPU; llama-7b.pth holds what
# transformers has, with `language_model.` before its names, and train.npy tokens in a row.
_base_ = ['../_base_/default_runtime.py']

model = dict(
    type='mmscale.DMSModel',
    target=dict(params=5.47e9),
    search=['width'],
    width_kinds=['heads', 'width'],
    pipeline='p-',
    pretrained='data/llama-7b.pth',
    input_shape=(2048,),
    model=dict(
        type='mmscale.CausalLM',
        config=dict(
            model_type='llama',
            vocab_size=32000,
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
            max_position_embeddings=2048,
            rms_norm_eps=1e-6,
        ),
    ),
)
custom_hooks = [
    dict(type='mmscale.IterationSeedHook'),
    dict(type='mmscale.StrictLoadHook'),
    dict(type='mmscale.DMSHook', interval=100),
]

train_dataloader = dict(
    batch_size=1,
    num_workers=2,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(type='mmscale.TokenFile', file='data/alpaca/train.npy', length=2048),
    collate_fn=dict(type='default_collate'),
)
# No parameter of the model is trained; the structure has an optimizer of its own.
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.0))
train_cfg = dict(by_epoch=False, max_iters=2000)
