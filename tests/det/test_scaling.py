"""Configs of mmdet are scaled into configs that build, with images of the size that is said."""

import pytest
from mmengine.config import Config

from mmscale.apis.cost import get_cost
from mmscale.apis.input_shape import config_input
from mmscale.apis.networks import build_module
from mmscale.apis.scaling.archs import scale
from mmscale.apis.scaling.recipes import write_networks
from mmscale.arch import ScalingRule
from mmscale.errors import UsageError

WIDTH = ScalingRule('w', 0, 0.5, 0)
RESOLUTION = ScalingRule('r', 0, 0, 0.5)


def scaled(source, rule, factor, folder):
    """A network scaled by a rule, and the config that is written for it."""
    (network,) = scale(source, [rule], [factor], mode='reference')
    write_networks([network], source, folder)
    return network, Config.fromfile(folder / f'{network.label}.py')


@pytest.mark.parametrize(
    'name',
    [
        'retinanet/retinanet_r18_fpn_1x_coco',
        'detr/detr_r50_8xb2-150e_coco',
        'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco',
        'yolox/yolox_s_8xb8-300e_coco',
        'rtmdet/rtmdet_tiny_8xb32-300e_coco',
    ],
)
def test_a_wider_detector_sees_the_same_images(name, tmp_path):
    source = f'mmdet::{name}'
    base = get_cost(source)
    network, child = scaled(source, WIDTH, 2, tmp_path)
    assert network.cost.flops > 1.1 * base.flops
    assert network.network.shape == base.shape
    assert config_input(child, None).shape[1:] == base.shape
    model = build_module(child.model, 'mmdet', meta=True)
    assert sum(p.numel() for p in model.parameters()) == network.cost.params > base.params
    for key in ('test_dataloader', 'train_dataloader', 'optim_wrapper'):
        assert child[key] == Config.fromfile(tmp_path / f'{network.label}.py')[key]


def test_all_images_of_a_detector_grow(tmp_path):
    source = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco'
    network, child = scaled(source, RESOLUTION, 2, tmp_path)
    assert network.resolution == (1120, 1888)
    assert '1120 x 1888 px' in repr(network)
    assert network.to_json()['resolution'] == (1120, 1888)
    # Nothing but the images: the weights that training starts from still fit.
    assert child.model.backbone.init_cfg.checkpoint == 'torchvision://resnet18'
    for loader in (child.train_dataloader, child.val_dataloader, child.test_dataloader):
        sizes = [part.scale for part in loader.dataset.pipeline if 'scale' in part]
        assert sizes == [(1873, 1120)]
    assert config_input(child, None).shape == (3, 1120, 1888)
    assert get_cost(child).flops == network.cost.flops


def test_weights_that_do_not_fit_are_left_out_and_nothing_is_frozen(tmp_path):
    source = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco'
    network, child = scaled(source, WIDTH, 2, tmp_path)
    backbone = child.model.backbone
    assert 'init_cfg' not in backbone
    assert (backbone.frozen_stages, backbone.norm_eval) == (-1, False)
    text = (tmp_path / f'{network.label}.py').read_text(encoding='utf-8')
    assert '# The weights it starts from do not fit' in text


def test_a_detector_around_an_arch_keeps_its_pipeline(tmp_path):
    source = 'configs/det/retinanet_scalenet-s0_fpn_1x_coco.py'
    network, child = scaled(source, WIDTH, 2, tmp_path)
    assert config_input(child, None).shape == (3, 800, 1344)
    model = build_module(child.model, 'mmdet', meta=True)
    assert model.backbone.arch == network.arch


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('ssd/ssd300_coco', "backbone.type='SSDVGG' has no adapter .* CSPDarknet, .* of mmdet"),
        ('dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco', 'backbone.dcn: there is no adapter'),
        ('cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco', 'HourglassNet'),
    ],
)
def test_what_cannot_be_scaled_is_one_line(name, message):
    with pytest.raises(UsageError, match=message):
        scale(f'mmdet::{name}', ['w'], [2])
