# Trains the network that dms-gpt2-mini_stdlib.py and tools/prune.py have found, from random
# weights. To go on from those of the search:
# load_from=work_dirs/dms-gpt2-mini_stdlib/pruned/weights.pth.
_base_ = '../causal_lm/gpt2-mini_stdlib.py'

model = dict(
    _delete_=True,
    type='mmscale.PrunedModel',
    pruned='work_dirs/dms-gpt2-mini_stdlib/pruned/pruned.json',
    model={{_base_.model}},
)
