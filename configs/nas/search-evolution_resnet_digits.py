# Evolution of one network of the small ResNet space.
_base_ = [
    '../_base_/models/super_net_digits.py',
    '../_base_/search_spaces/resnet_digits.py',
    '../_base_/datasets/cluttered_digits_search.py',
    '../_base_/search_runtime.py',
]

model = dict(backbone=dict(space={{_base_.space}}))
load_from = 'work_dirs/supernet_resnet_digits/iter_1000.pth'

test_cfg = dict(
    search=dict(population=12, generations=12),
    budget=1e6,
    subnet_evaluator=dict(calibration_images=768, max_images=1500, side='left', threads=1),
)
