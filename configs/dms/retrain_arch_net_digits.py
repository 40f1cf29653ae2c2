# Trains the ArchNet that arch_net_digits.py found: the --recipe of tools/prune.py, which writes
# a config with the network's file and its width. By itself it needs model.backbone.arch and
# model.head.in_channels.
_base_ = '../scalenet/retrain_digits.py'
