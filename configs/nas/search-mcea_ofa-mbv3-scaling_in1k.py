# One network of the Once-for-All space at two resolutions for two budgets, on the weights of
# supernet_ofa-mbv3_32xb8_in1k.py.
_base_ = [
    '../_base_/models/super_net_in1k.py',
    '../_base_/search_spaces/ofa-mbv3-scaling.py',
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
    search=dict(
        _delete_=True,
        type='mmscale.MCEA',
        population=64,
        generations=40,
        rounds=4,
        num_base_models=20,
    ),
    budget=90e6,
    weights=[1, 1],
    subnet_evaluator=dict(calibration_images=4096, cache='disk'),
)
