# A small language model like GPT-2 on the source of Python's standard library.
_base_ = [
    '../_base_/datasets/stdlib.py',
    '../_base_/schedules/stdlib_adamw.py',
    '../_base_/default_runtime.py',
]

model = dict(
    type='mmscale.CausalLM',
    config=dict(
        model_type='gpt2',
        vocab_size=256,
        n_embd=128,
        n_layer=4,
        n_head=4,
        n_positions=128,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    ),
)
custom_hooks = [dict(type='mmscale.IterationSeedHook'), dict(type='mmscale.StrictLoadHook')]
