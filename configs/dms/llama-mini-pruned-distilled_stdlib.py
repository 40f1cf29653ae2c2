# Trains what dms-llama-mini-distilled_stdlib.py and tools/prune.py have left, from the weights of
# the search, with the whole network as the teacher.
_base_ = './llama-mini-pruned_stdlib.py'

model = dict(
    pruned='work_dirs/dms-llama-mini-distilled_stdlib/pruned/pruned.json',
    model=dict(
        type='mmscale.DistilledCausalLM',
        teacher_checkpoint='work_dirs/llama-mini_stdlib/iter_500.pth',
    ),
)
load_from = 'work_dirs/dms-llama-mini-distilled_stdlib/pruned/weights.pth'

param_scheduler = [
    dict(type='LinearLR', start_factor=0.04, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', eta_min=1e-4, by_epoch=False, begin=50, end=150),
]
train_cfg = dict(max_iters=150, val_interval=150)
