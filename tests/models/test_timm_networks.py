"""Archs as timm's networks and back: equal logits, and what timm cannot say is named."""

import sys
from dataclasses import replace

import pytest
import torch

from mmscale.apis import from_timm, to_timm
from mmscale.apis.networks import build_network
from mmscale.arch import SCALING_RULES, Block, SqueezeExcite, apply_scaling, get_arch
from mmscale.arch.families import efficientnet, mobilenet_v3

pytest.importorskip('timm')
import timm

CLASSES = 5


@pytest.fixture(scope='module')
def images():
    # An odd side, so that both ways of padding differ.
    return torch.randn(2, 3, 67, 67, generator=torch.Generator().manual_seed(0)).double()


def with_classes(arch, **changes):
    """The Arch with a few classes, and its first block of the second stage changed."""
    stages = [list(stage) for stage in arch.stages]
    stages[1][0] = replace(stages[1][0], **changes)
    head = replace(arch.head, num_classes=CLASSES)
    return replace(arch, stages=tuple(map(tuple, stages)), head=head)


def assert_equal_logits(found, expected):
    scale = expected.abs().max()
    assert (expected[0] - expected[1]).abs().max() / scale > 1e-3  # images matter
    assert (found - expected).abs().max() / scale < 1e-11


def with_block(block):
    """A ResNet-18 with a block after its last network stage."""
    arch = get_arch('ResNet-18')
    return replace(arch, stages=(*arch.stages, (block,)))


def shallow(name, *depths):
    """The first blocks of each network stage."""
    arch = get_arch(name)
    stages = tuple(stage[:n] for stage, n in zip(arch.stages, depths, strict=True))
    return replace(arch, stages=stages)


def scaled(name, rule, factor):
    """A network of a scaling, one block deep where that is enough."""
    arch = apply_scaling(get_arch(name), SCALING_RULES[rule].scaling(factor), 'pycls')
    return replace(arch, stages=tuple(stage[:2] for stage in arch.stages))


ARCHS = {
    'EfficientNet-B0': get_arch('EfficientNet-B0'),
    'MobileNetV3-Small': get_arch('MobileNetV3-Small'),
    'RegNetX-200MF': get_arch('RegNetX-200MF'),
    'RegNetY-200MF': get_arch('RegNetY-200MF'),
    'ResNet-18': get_arch('ResNet-18'),
    # Not among timm's names: by the arguments of its classes.
    'narrow EfficientNet': efficientnet(0.3, 0.5, 64),
    'EfficientNet with another kernel': with_classes(efficientnet(0.3, 0.5, 64), kernel=7),
    'ScaleNet': get_arch('scalenet-s0'),
    'MobileNetV3 with another squeeze': with_classes(
        mobilenet_v3('small'), se=SqueezeExcite(5), kernel=5
    ),
    'ResNet of other depths': shallow('ResNet-34', 1, 3, 1, 2),
    'ResNeXt of other depths': shallow('ResNeXt-50-32x4d', 1, 1, 2, 1),
    'scaled RegNetX': scaled('RegNetX-200MF', 'dWr', 2),
    'scaled RegNetY': scaled('RegNetY-200MF', 'dWr', 2),
    'scaled RegNetZ': scaled('RegNetZ-500MF', 'w', 1.5),
    'scaled ResNeXt': scaled('ResNeXt-50-32x4d', 'w', 1.5),
    'scaled ResNeXt with groups kept': scaled('ResNeXt-50-32x4d', 'dWr_gfix', 0.6),
    # Hidden widths that timm's arguments would round.
    'scaled MobileNetV3': scaled('MobileNetV3-Small', 'w', 1.7),
    'scaled EfficientNet': scaled('EfficientNet-B0', 'dWr', 0.4),
}


@pytest.mark.parametrize('name', ARCHS)
def test_there_and_back(name, randomise, images):
    arch = replace(ARCHS[name], head=replace(ARCHS[name].head, num_classes=CLASSES))
    ours = randomise(build_network(arch), weights=True).double().eval()
    theirs = to_timm(arch, ours.state_dict()).double().eval()
    assert type(theirs).__module__.startswith('timm.')
    assert_equal_logits(theirs(images), ours(images))
    known = arch if theirs_has_no_name(theirs) else None
    found, weights = from_timm(theirs, arch=known)
    assert found.stages == arch.stages and found.head == arch.head
    back = build_network(found)
    back.load_state_dict(weights)
    assert_equal_logits(back.double().eval()(images), ours(images))


def theirs_has_no_name(network):
    return not getattr(network, 'pretrained_cfg', None)


def test_by_name_with_classes_and_gray_images(randomise):
    theirs = timm.create_model('regnety_002', num_classes=3, in_chans=1)
    arch, weights = from_timm(randomise(theirs).eval())
    assert (arch.stem.in_channels, arch.head.num_classes) == (1, 3)
    ours = build_network(arch).eval()
    ours.load_state_dict(weights)
    images = torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(ours(images), theirs(images))
    assert from_timm('resnet18')[0].stages == get_arch('ResNet-18').stages
    assert to_timm(arch).stem.conv.in_channels == 1


def test_what_timm_cannot_say_is_named():
    for arch, message in (
        (with_classes(get_arch('scalenet-s0'), residual='projection'), r'stages\[1\]\[0\]: resid'),
        (with_classes(get_arch('scalenet-s0'), eps=1e-3), r'stages\[1\]\[0\] has eps=0.001'),
        (with_classes(get_arch('scalenet-s0'), padding='same'), r'stages\[1\]\[0\] has padding'),
        (
            get_arch(
                dict(family='regnet', kind='x', depth=8, w0=24, wa=24.0, wm=2.5, group_width=8)
            ),
            'stages: there are 3, a RegNet has 4',
        ),
        (with_classes(get_arch('ResNet-18'), hidden_channels=100), r'hidden_channels=100, its'),
        (with_classes(get_arch('RegNetY-200MF'), kernel=5), r'kernel=5, its RegNet has 3'),
        (with_classes(get_arch('RegNetY-200MF'), se=SqueezeExcite(5)), r'se: relu and hsig'),
        (with_classes(get_arch('ResNeXt-50'), se=SqueezeExcite(5)), 'se: its ResNet has none'),
        (with_block(Block('conv', 3, 1, 512, 512, 512, 1)), r'stages\[4\]\[0\]: kind=conv$'),
        (get_arch('ResNet-18').to_json(), None),
    ):
        if message is None:
            to_timm(arch)
        else:
            with pytest.raises(ValueError, match=message):
                to_timm(arch)


def test_weights_of_another_network_are_refused():
    weights = build_network(get_arch('ResNet-18')).state_dict()
    weights.pop('head.fc.bias')
    with pytest.raises(ValueError, match=r'1 missing: head\.fc\.bias'):
        to_timm('ResNet-18', weights)
    with pytest.raises(ValueError, match='no Arch matches'):
        from_timm('vit_tiny_patch16_224')
    with pytest.raises(ValueError, match='has no name in timm'):
        from_timm(torch.nn.Linear(1, 1))


def test_without_timm_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm', None)
    with pytest.raises(ImportError, match='pip install timm'):
        to_timm('ResNet-18')


def test_hidden_widths_are_rounded_as_ever_after():
    arch = ARCHS['scaled MobileNetV3']
    assert any(block.hidden_channels % 8 for block in arch.blocks)
    to_timm(arch)
    again = timm.create_model('mobilenetv3_small_075')
    assert again.blocks[1][0].conv_pw.out_channels % 8 == 0
