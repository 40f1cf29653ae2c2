"""Detectors of every kind are counted, whatever their forward pass needs."""

import pytest

from mmscale.apis.cost import get_cost
from mmscale.apis.networks import find_network

ROOT_CONFIGS = 'configs/det/'
# Flops of the two hidden layers and the outputs that a Faster R-CNN has for each box.
PER_BOX = 256 * 7 * 7 * 1024 + 1024 * 1024 + 1024 * (81 + 80 * 4)


def test_our_detectors_follow_their_pipeline_and_not_the_arch():
    for name, shape in (
        ('retinanet_scalenet-s0_fpn_1x_coco', (3, 800, 1344)),
        ('faster-rcnn_scalenet-s1_fpn_1x_coco', (3, 800, 1344)),
        ('rtmdet_scalenet-s0_8xb32-300e_coco', (3, 640, 640)),
        ('retinanet_digits-s2_fpn_digits', (1, 96, 96)),
    ):
        assert find_network(f'{ROOT_CONFIGS}{name}.py').image_shape == shape


def test_two_stages_are_counted_with_the_boxes_that_the_first_proposes():
    ours = get_cost(f'{ROOT_CONFIGS}faster-rcnn_scalenet-s0_fpn_1x_coco.py', shape=(160, 128))
    flops = {part['name']: part['flops'] for part in ours.parts}
    boxes = flops['roi_head'] / PER_BOX
    assert boxes.is_integer() and 100 < boxes <= 1000
    assert ours.flops == sum(flops.values())
    given = get_cost('mmdet::fast_rcnn/fast-rcnn_r50_fpn_1x_coco', shape=(160, 128))
    flops = {part['name']: part['flops'] for part in given.parts}
    assert flops['roi_head'] == 1000 * PER_BOX


@pytest.mark.parametrize(
    'name',
    [
        'dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco',
        'detr/detr_r50_8xb2-150e_coco',
        'deformable_detr/deformable-detr_r50_16xb2-50e_coco',
        'mask_rcnn/mask-rcnn_r50_fpn_1x_coco',
        'panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco',
        'solo/solo_r50_fpn_1x_coco',
    ],
)
def test_detectors_of_mmdet_are_counted(name):
    cost = get_cost(f'mmdet::{name}', shape=(160, 128))
    backbone = sum(p['flops'] for p in cost.parts if p['name'].startswith('backbone'))
    # Of a ResNet-50 4.09 G at 224 px, without its last layer; deformable ones learn offsets too.
    resnet = (4_089_184_256 - 2048 * 1000) * 160 * 128 / 224**2
    assert resnet * 0.99 < backbone < resnet * 1.1
    assert cost.flops > 1.1 * backbone
