# Evolution of one network of the RegNet space on ImageNet.
_base_ = [
    '../_base_/models/super_net_in1k.py',
    '../_base_/search_spaces/regnet.py',
    '../_base_/datasets/imagenet_search.py',
    '../_base_/search_runtime.py',
]

model = dict(backbone=dict(space={{_base_.space}}))
load_from = 'work_dirs/supernet_regnet_32xb8_in1k/iter_750000.pth'

test_cfg = dict(
    budget=1.6e9,  # RegNetY-1.6GF
    subnet_evaluator=dict(calibration_images=4096, cache='disk'),
)
