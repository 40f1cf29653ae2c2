# LLaMA-7B with itself, whole, as the teacher: llama-7b.pth holds what transformers has, with
# `language_model.` before its names.
model = dict(
    type='mmscale.DistilledCausalLM',
    teacher_checkpoint='data/llama-7b.pth',
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
)
