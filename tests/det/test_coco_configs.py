"""The detectors for COCO build, learn, and follow their Arch."""

from pathlib import Path

import pytest
import torch
from mmdet.registry import TRANSFORMS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope

from mmscale.arch import get_arch
from mmscale.models import ArchNet
from mmscale.models.dms import apply_pruning, channel_groups, plan_pruning
from mmscale.registry import MODELS

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'det'
NAMES = sorted(path.name for path in CONFIGS.glob('*_scalenet-s?_*coco.py'))
PARENTS = [name for name in NAMES if 'scalenet-s0' in name]


def build(config):
    with DefaultScope.overwrite_default_scope('mmdet'):
        return revert_sync_batchnorm(MODELS.build(config.model))


def test_four_detectors_at_four_scales():
    assert len(PARENTS) == 4 and len(NAMES) == 16
    for name in NAMES:
        lines = (CONFIGS / name).read_text(encoding='utf-8').splitlines()
        scale = name.partition('_')[2].partition('_')[0]
        assert len(lines) <= (15 if name in PARENTS else 3)
        if name not in PARENTS:
            assert lines[-1] == f"model = dict(backbone=dict(arch='{scale}'))"


@pytest.mark.parametrize('name', NAMES)
def test_it_builds_and_takes_a_training_step(name):
    torch.manual_seed(0)
    config = Config.fromfile(CONFIGS / name)
    if 'roi_head' in config.model:
        config.model.roi_head.bbox_head.fc_out_channels = 8  # not 14 million weights
    model = build(config)
    assert type(model.backbone) is ArchNet and not model.with_neck
    assert model.backbone.arch == get_arch(config.model.backbone.arch)
    data = demo_mm_inputs(2, (3, 64, 64), num_items=[2, 1], num_classes=80)
    data = model.train().data_preprocessor(data, training=True)
    loss, parts = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    assert all(part.isfinite() for part in parts.values()) and loss > 0
    for key, parameter in model.named_parameters():
        # All that asks for a gradient gets one, as DistributedDataParallel wants it.
        assert (parameter.grad is not None) == parameter.requires_grad, key
        assert parameter.requires_grad or key.startswith('backbone.conv_head.')
    stem = model.backbone.stem.conv.weight
    before = stem.detach().clone()
    torch.optim.SGD(model.parameters(), lr=1 / float(stem.grad.norm())).step()
    assert (stem.detach() - before).norm().item() == pytest.approx(1, rel=1e-3)


def in_channels(neck):
    """What the layers of a neck take from the backbone, from the largest feature map on."""
    if hasattr(neck, 'lateral_convs'):
        return [layer.conv.in_channels for layer in neck.lateral_convs]
    # RTMDet's: from the smallest map on, each is reduced to the width of the next.
    reduced = [layer.conv for layer in neck.reduce_layers]
    return [reduced[-1].out_channels, *(layer.in_channels for layer in reversed(reduced))]


@pytest.mark.parametrize('name', PARENTS)
@pytest.mark.parametrize('preset', ['ResNet-50', 'RegNetY-400MF', 'MobileNetV3-Large'])
def test_a_child_that_changes_the_arch_alone_stays_right(name, preset, tmp_path):
    child = tmp_path / 'child.py'
    child.write_text(
        f'_base_ = {str(CONFIGS / name)!r}\nmodel = dict(backbone=dict(arch={preset!r}))'
    )
    with torch.device('meta'):
        model = build(Config.fromfile(child))
    arch = get_arch(preset)
    widths = dict(zip(arch.strides, arch.widths, strict=True))
    strides = (4, 8, 16, 32) if name.startswith('faster') else (8, 16, 32)
    assert in_channels(model.backbone.neck) == [widths[stride] for stride in strides]


@pytest.mark.parametrize('name', PARENTS)
def test_images_reach_the_network_as_they_reach_the_classifier(name):
    config = Config.fromfile(CONFIGS / name)
    classifier = Config.fromfile(CONFIGS.parent / 'scalenet/scalenet-s0_8xb128_in1k.py')
    theirs, ours = classifier.data_preprocessor, config.model.data_preprocessor
    assert (ours.mean, ours.std, ours.bgr_to_rgb) == (theirs.mean, theirs.std, theirs.to_rgb)
    for part in ('train_dataloader', 'val_dataloader'):
        for transform in config[part].dataset.pipeline:
            assert TRANSFORMS.get(transform.type) is not None


def test_widths_behind_a_pyramid_of_its_own_can_go():
    pyramid = dict(type='FPN', out_channels=8, num_outs=4, add_extra_convs='on_output')
    with DefaultScope.overwrite_default_scope('mmdet'):
        net = ArchNet('ResNet-18', out_strides=(8, 16, 32), neck=pyramid).eval()
    images = [torch.rand(1, 3, 64, 64)]
    groups = channel_groups(net, images)
    names = [group.name for group in channel_groups(ArchNet('ResNet-18'), images)]
    # The channels that the laterals share can go too, those of the outputs cannot.
    assert [group.name for group in groups] == [*names, 'neck.lateral_convs.0.conv']
    keep = {group.name: range(0, group.size, 2) for group in groups}
    small = apply_pruning(net, plan_pruning(net, groups, keep))
    assert in_channels(small.neck) == [64, 128, 256]
    assert [x.shape[1] for x in small(*images)] == [8] * 4
