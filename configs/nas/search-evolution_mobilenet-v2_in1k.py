# Evolution of one network of the MobileNetV2 space on ImageNet.
_base_ = [
    '../_base_/models/super_net_in1k.py',
    '../_base_/search_spaces/mobilenet-v2.py',
    '../_base_/datasets/imagenet_search.py',
    '../_base_/search_runtime.py',
]

model = dict(
    backbone=dict(space={{_base_.space}}),
    head=dict(in_channels=1280),
)
load_from = 'work_dirs/supernet_mobilenet-v2_32xb8_in1k/iter_750000.pth'

test_cfg = dict(
    budget=300e6,  # MobileNetV2
    subnet_evaluator=dict(calibration_images=4096, cache='disk'),
)
