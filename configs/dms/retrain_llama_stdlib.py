# Trains the network that llama_stdlib.py and tools/prune.py have found, from random weights. To go
# on from those of the search: load_from=work_dirs/llama_stdlib/pruned/weights.pth.
_base_ = '../causal_lm/train_llama_stdlib.py'

model = dict(
    _delete_=True,
    type='mmscale.PrunedModel',
    pruned='work_dirs/llama_stdlib/pruned/pruned.json',
    model={{_base_.model}},
)
