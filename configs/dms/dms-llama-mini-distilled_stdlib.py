# As dms-llama-mini_stdlib.py, from trained weights and with the whole network as the teacher:
# train that first with
#   python tools/train.py configs/causal_lm/llama-mini_stdlib.py
_base_ = './dms-llama-mini_stdlib.py'

model = dict(
    pipeline='p',
    pretrained='work_dirs/llama-mini_stdlib/iter_500.pth',
    model=dict(
        type='mmscale.DistilledCausalLM',
        teacher_checkpoint='work_dirs/llama-mini_stdlib/iter_500.pth',
    ),
)
