# A small language model like LLaMA on the source of Python's standard library.
_base_ = [
    '../_base_/datasets/stdlib.py',
    '../_base_/schedules/stdlib_adamw.py',
    '../_base_/default_runtime.py',
]

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
