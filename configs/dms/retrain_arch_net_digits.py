# Trains the ArchNet that arch_net_digits.py and tools/prune.py have found, from random weights.
# Its file is model.backbone.arch; model.head.in_channels is the width of its features. To go on
# from the weights of the search: load_from=<folder>/weights.pth.
_base_ = '../scalenet/retrain_digits.py'
