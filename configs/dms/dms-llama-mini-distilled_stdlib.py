# As dms-llama-mini_stdlib.py, from trained weights and with the whole network as the teacher:
# train that first with
#   python tools/train.py configs/causal_lm/llama-mini_stdlib.py
_base_ = './dms-llama-mini_stdlib.py'

model = dict(
    pipeline='p',
    pretrained='work_dirs/llama-mini_stdlib/iter_500.pth',
    # The structure's steps reach the target by themselves: about 2 / iterations.
    structure_optimizer=dict(_delete_=True, type='Adam', lr=2 / 150),
    model=dict(
        type='mmscale.DistilledCausalLM',
        teacher_checkpoint='work_dirs/llama-mini_stdlib/iter_500.pth',
    ),
)
