# Evolution of one network of the AttentiveNAS space on ImageNet.
_base_ = [
    '../_base_/models/super_net_in1k.py',
    '../_base_/search_spaces/attentive.py',
    '../_base_/datasets/imagenet_search.py',
    '../_base_/search_runtime.py',
]

model = dict(
    backbone=dict(space={{_base_.space}}),
    head=dict(type='StackedLinearClsHead', act_cfg=dict(type='SiLU')),
)
load_from = 'work_dirs/supernet_attentive_32xb8_in1k/iter_750000.pth'

test_cfg = dict(
    budget=440e6,  # A4 has 435e6
    subnet_evaluator=dict(calibration_images=4096, cache='disk'),
)
