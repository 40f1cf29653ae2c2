# Evolution of one network of the Once-for-All space on ImageNet.
_base_ = [
    '../_base_/models/super_net_in1k.py',
    '../_base_/search_spaces/ofa-mbv3.py',
    '../_base_/datasets/imagenet_search.py',
    '../_base_/search_runtime.py',
]

model = dict(
    backbone=dict(space={{_base_.space}}),
    head=dict(
        type='StackedLinearClsHead',
        in_channels=960,
        mid_channels=[1280],
        act_cfg=dict(type='HSwish'),
    ),
)
load_from = 'work_dirs/supernet_ofa-mbv3_32xb8_in1k/iter_750000.pth'

test_cfg = dict(
    budget=220e6,  # MobileNetV3-Large has 217e6
    subnet_evaluator=dict(calibration_images=4096, cache='disk'),
)
