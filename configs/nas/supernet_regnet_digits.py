# The super-supernet of the small RegNet space: warm-up, sandwich with distillation.
_base_ = [
    '../_base_/models/super_net_digits.py',
    '../_base_/search_spaces/regnet_digits.py',
    '../_base_/datasets/cluttered_digits_train.py',
    '../_base_/schedules/digits_super_net_sgd.py',
    '../_base_/super_net_runtime.py',
]

model = dict(backbone=dict(space={{_base_.space}}))
