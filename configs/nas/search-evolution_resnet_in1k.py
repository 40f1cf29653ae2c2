# Evolution of one network of the ResNet space on ImageNet.
_base_ = [
    '../_base_/models/super_net_in1k.py',
    '../_base_/search_spaces/resnet.py',
    '../_base_/datasets/imagenet_search.py',
    '../_base_/search_runtime.py',
]

model = dict(backbone=dict(space={{_base_.space}}))
load_from = 'work_dirs/supernet_resnet_32xb8_in1k/iter_750000.pth'

test_cfg = dict(
    budget=2e9,  # ResNet-50 has 4.1e9
    subnet_evaluator=dict(calibration_images=4096, cache='disk'),
)
