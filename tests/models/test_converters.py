"""Converted weights: equal logits with mmpretrain's and timm's networks, and every mistake named.

No published weights: random ones, with random statistics of every norm layer, so that eps and
the order of layers matter; odd sides, so that both ways of padding differ.
"""

from dataclasses import replace

import pytest
import torch

from mmscale.apis.networks import build_module, build_network, classifier_config
from mmscale.arch import Block, get_arch
from mmscale.models.converters import (
    convert_state_dict,
    matching_arch,
    source_name,
    source_names,
    weights_for_source,
)

SIDE = 75
REGNETS = ('regnetx_800mf', 'regnetx_4.0gf', 'regnetx_12gf')
CLASSES = 7


def classifier_of(backbone, channels, hidden=None):
    """Config of an mmpretrain classifier with mmpretrain's own backbone."""
    head = dict(type='LinearClsHead', num_classes=CLASSES, in_channels=channels, topk=(1,))
    if hidden is not None:
        act = dict(type='HSwish')
        head.update(type='StackedLinearClsHead', mid_channels=[hidden], act_cfg=act)
    neck = dict(type='GlobalAveragePooling')
    return dict(type='ImageClassifier', backbone=backbone, neck=neck, head=head)


def logits(arch, weights, images):
    """What an ArchNet's classifier with converted weights computes."""
    network = build_module(classifier_config(arch))
    network.load_state_dict(weights, strict=True)
    return network.double().eval()(images)


@pytest.fixture
def prepared(randomise):
    """A function that gives a network random statistics, in eval mode and float64."""

    def prepare(network):
        randomise(network, weights=True).double().eval()  # a backbone's eval() returns nothing
        return network

    return prepare


@pytest.fixture(scope='module')
def images():
    return torch.randn(
        2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )


def distance(found, expected):
    """Largest difference over the largest value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def assert_equal_logits(found, expected):
    # Images matter to the logits, or equal ones would mean nothing.
    assert distance(expected[0], expected[1]) > 1e-3
    assert distance(found, expected) < 1e-11


@pytest.mark.parametrize(
    ('name', 'backbone', 'channels', 'hidden'),
    [
        ('efficientnet-b0_3rdparty_8xb32_in1k', dict(type='EfficientNet', arch='b0'), 1280, None),
        ('EfficientNet-B1', dict(type='EfficientNet', arch='b1'), 1280, None),
        ('mobilenet-v2_8xb32_in1k', dict(type='MobileNetV2'), 1280, None),
        ('mobilenet-v3-large', dict(type='MobileNetV3', arch='large'), 960, 1280),
        ('mobilenet-v3-small', dict(type='MobileNetV3', arch='small'), 576, 1024),
        ('regnetx-400mf_8xb128_in1k', dict(type='RegNet', arch='regnetx_400mf'), 384, None),
        ('resnet18_8xb32_in1k', dict(type='ResNet', depth=18), 512, None),
        ('ResNet-50', dict(type='ResNet', depth=50), 2048, None),
        ('resnext50-32x4d', dict(type='ResNeXt', depth=50, groups=32), 2048, None),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_mmpretrain(name, backbone, channels, hidden, prepared, images):
    source = prepared(build_module(classifier_of(backbone, channels, hidden)))
    arch, weights = convert_state_dict(source.state_dict(), name, 'mmpretrain')
    assert arch.head.num_classes == CLASSES
    assert_equal_logits(logits(arch, weights, images), source(images))


@pytest.mark.parametrize(
    'name',
    [
        'efficientnet_b0',
        'efficientnet_lite0',
        'mobilenetv2_100',
        'mobilenetv3_large_100',
        'mobilenetv3_small_100',
        'regnetx_004',
        'regnety_004',
        'regnetz_005',
        'resnet18',
        'resnet50.a1_in1k',
        'resnext50_32x4d',
        'tf_efficientnet_b0.ns_jft_in1k',
        'tf_mobilenetv3_large_100',
    ],
)
def test_timm(name, prepared, images):
    timm = pytest.importorskip('timm')
    source = prepared(timm.create_model(name.partition('.')[0], num_classes=CLASSES))
    arch, weights = convert_state_dict(source.state_dict(), name, 'timm')
    assert_equal_logits(logits(arch, weights, images), source(images))


def test_mmpretrain_networks_have_the_layers_of_their_archs():
    for name, config in (
        *((f'efficientnet-b{k}', dict(type='EfficientNet', arch=f'b{k}')) for k in (3, 4, 7)),
        *((name.replace('_', '-'), dict(type='RegNet', arch=name)) for name in REGNETS),
        *((f'resnet{depth}', dict(type='ResNet', depth=depth)) for depth in (34, 101, 152)),
        (
            'resnext101-32x8d',
            dict(type='ResNeXt', depth=101, groups=32, width_per_group=8),
        ),
    ):
        source = build_module(config, meta=True)
        _, weights = convert_state_dict(source.state_dict(), name, 'mmpretrain')
        assert len(weights) == len(source.state_dict())


def test_timm_networks_have_the_layers_of_their_archs():
    for name in (
        'tf_efficientnet_b4',
        'efficientnet_b7',
        'tf_efficientnet_lite4',
        'regnetx_032',
        'regnety_320',
        'regnetz_040',
        'regnetz_040_h',
        'resnet34',
        'resnext101_32x8d',
    ):
        timm = pytest.importorskip('timm')
        with torch.device('meta'):
            source = timm.create_model(name)
        arch, weights = convert_state_dict(source.state_dict(), name, 'timm')
        assert len(weights) == len(source.state_dict())
        norms = [it for it in source.modules() if isinstance(it, torch.nn.BatchNorm2d)]
        eps = {arch.stem.eps, arch.head.eps, *(block.eps for block in arch.blocks)}
        assert {norm.eps for norm in norms} == eps


def test_timm_has_every_network_that_is_known_of_it():
    timm = pytest.importorskip('timm')
    assert set(source_names('timm')) <= set(timm.list_models())


@pytest.mark.parametrize('wrong', [dict(padding='half'), dict(eps=1e-5)])
def test_wrong_padding_or_eps_is_another_network(wrong, prepared, images):
    """What no key of a checkpoint tells, and what the tests above therefore have to see."""
    source = prepared(build_module(classifier_of(dict(type='EfficientNet', arch='b0'), 1280)))
    arch, weights = convert_state_dict(source.state_dict(), 'efficientnet-b0', 'mmpretrain')
    stages = [[replace(block, **wrong) for block in stage] for stage in arch.stages]
    found = logits(replace(arch, stages=stages), weights, images)
    assert distance(found, source(images)) > 1e-5


def test_a_backbone_alone(prepared, images):
    """With and without the prefix: the same weights, for which init_cfg=Pretrained asks so."""
    source = prepared(build_module(dict(type='RegNet', arch='regnetx_400mf')))
    bare = source.state_dict()
    for prefix in ('', 'backbone.'):
        given = {f'{prefix}{key}': value for key, value in bare.items()}
        arch, weights = convert_state_dict(given, 'RegNetX-400MF', 'mmpretrain')
        assert all(key.startswith('backbone.') for key in weights)
        network = build_module(dict(type='mmscale.ArchNet', arch=arch))
        network.load_state_dict({key.removeprefix('backbone.'): weights[key] for key in weights})
        network.double().eval()
        found = network(images)[0]
        assert_equal_logits(found, source(images)[0])


def test_padding_and_eps_are_the_sources():
    for name, source, same, eps in (
        ('EfficientNet-B2', 'mmpretrain', True, 1e-3),
        ('efficientnet-b2_3rdparty-ra-noisystudent_in1k', 'mmpretrain', True, 1e-3),
        ('EfficientNet-B2', 'timm', False, 1e-5),
        ('tf_efficientnet_b2.ns_jft_in1k', 'timm', True, 1e-3),
        ('mobilenet-v3-large_8xb128_in1k', 'mmpretrain', False, 1e-3),
        ('tf_mobilenetv3_small_100', 'timm', True, 1e-3),
        ('regnetx-4.0gf_8xb64_in1k', 'mmpretrain', False, 1e-5),
        ('regnetz_040_h.ra3_in1k', 'timm', False, 1e-5),
    ):
        arch = matching_arch(name, source)
        padding = 'same' if same else 'half'
        assert {arch.stem.padding, *(block.padding for block in arch.blocks)} == {padding}
        assert {arch.stem.eps, arch.head.eps, *(block.eps for block in arch.blocks)} == {eps}


def test_unknown_names():
    for name, source, message in (
        ('resnet50', 'torchvision', "source='torchvision' is not one of mmpretrain, timm"),
        ('resnet5', 'timm', "'resnet5': no Arch matches .* of timm; near names are .*resnet50"),
        ('RegNetY-400MF', 'mmpretrain', 'no Arch matches such a network of mmpretrain'),
        ('EfficientNet-Lite0', 'mmpretrain', 'no Arch matches such a network of mmpretrain'),
        ('scalenet-s0', 'timm', 'no Arch matches such a network of timm'),
        ('resnet50d.ra2_in1k', 'timm', 'no Arch matches such a network of timm'),
        ('', 'timm', 'known are efficientnet_b0'),
    ):
        with pytest.raises(ValueError, match=message):
            matching_arch(name, source)


@pytest.fixture(scope='module')
def resnet18():
    """Weights of mmpretrain's ResNet-18, without values."""
    config = classifier_of(dict(type='ResNet', depth=18), 512)
    return build_module(config, meta=True).state_dict()


def without(weights, *keys):
    return {key: value for key, value in weights.items() if key not in keys}


def test_weights_that_do_not_fit(resnet18):
    for change, message in (
        (lambda w: without(w, 'backbone.layer2.0.conv2.weight'), r'1 missing: .*layer2.0.conv2'),
        (lambda w: without(w, 'head.fc.bias'), '1 missing: head.fc.bias'),
        (lambda w: without(w, 'head.fc.weight'), '1 missing: head.fc.weight'),
        (
            lambda w: {**w, 'backbone.new.weight': torch.ones(1)},
            'not in the model: backbone.new',
        ),
        (lambda w: {**w, 'neck.scale': torch.ones(1)}, 'not in the model: neck.scale'),
        (
            lambda w: {**w, 'backbone.bn1.weight': torch.ones(3)},
            r'1 of another shape: backbone.bn1.weight \(3,\), expected \(64,\)',
        ),
        (
            lambda w: {**w, 'head.fc.weight': torch.ones(())},
            r'of another shape: head.fc.weight \(\), expected \(1000, 512\)',
        ),
        (lambda w: {}, 'the weights have none, but no keys'),
        (lambda w: {f'module.{key}': value for key, value in w.items()}, 'module.backbone'),
    ):
        with pytest.raises(ValueError, match=message):
            convert_state_dict(change(resnet18), 'resnet18', 'mmpretrain')


def test_weights_of_another_network(resnet18):
    with pytest.raises(ValueError, match=r'missing: backbone.layer1.0.conv3.weight.*of another'):
        convert_state_dict(resnet18, 'resnet50', 'mmpretrain')
    with pytest.raises(
        ValueError, match=r'conv_stem.weight, stem.conv.weight; the weights have none'
    ):
        convert_state_dict(resnet18, 'resnet18', 'timm')
    with pytest.raises(ValueError, match=r'a network without its layer stages\.0\.0\.se'):
        convert_state_dict(resnet18, get_arch('RegNetY-400MF'), 'mmpretrain')
    with pytest.raises(ValueError, match=r'without the hidden layer of head\.hidden_channels=9'):
        arch = get_arch('ResNet-18')
        arch = replace(arch, head=replace(arch.head, hidden_channels=9))
        convert_state_dict(resnet18, arch, 'mmpretrain')
    arch = get_arch('ResNet-18')
    conv = Block('conv', 1, 1, 512, 512, 512, 1)
    arch = replace(arch, stages=(*arch.stages[:3], (*arch.stages[3], conv)))
    with pytest.raises(ValueError, match=r'arch: stages\[3\]\[2\]: kind=conv: no network'):
        convert_state_dict(resnet18, arch, 'mmpretrain')


def test_counters_of_batches_may_be_missing(resnet18):
    old = {key: it for key, it in resnet18.items() if not key.endswith('num_batches_tracked')}
    _, weights = convert_state_dict(old, 'resnet18', 'mmpretrain')
    counters = [key for key in weights if key.endswith('num_batches_tracked')]
    assert len(counters) == 20
    assert all(weights[key] == 0 for key in counters)


@pytest.mark.parametrize(
    ('name', 'source'),
    [
        ('ResNet-18', 'mmpretrain'),
        ('RegNetX-400MF', 'mmpretrain'),
        ('efficientnet-b0', 'mmpretrain'),
        ('mobilenet-v2', 'mmpretrain'),
        ('mobilenet-v3-small', 'mmpretrain'),
        ('ResNet-18', 'timm'),
        ('regnety_002', 'timm'),
        ('tf_efficientnet_b0', 'timm'),
        ('mobilenetv3_small_100', 'timm'),
    ],
)
def test_the_way_back(name, source):
    """Ours to the source's names and back: the very weights, and the source's own keys."""
    arch = matching_arch(name, source)
    arch = replace(arch, head=replace(arch.head, num_classes=3))
    ours = build_network(arch).state_dict()
    theirs = weights_for_source(ours, matching_arch(name, source), source)
    again, weights = convert_state_dict(theirs, arch, source)
    assert again == arch and weights.keys() == ours.keys()
    assert all(torch.equal(weights[key], ours[key]) for key in ours)
    if source == 'timm':
        network = pytest.importorskip('timm').create_model(
            source_name(arch, source), num_classes=3
        )
        network.load_state_dict(theirs)


def test_the_way_back_gives_what_mmpretrain_builds(resnet18):
    arch, ours = convert_state_dict(
        {key: torch.zeros(value.shape) for key, value in resnet18.items()},
        'resnet18',
        'mmpretrain',
    )
    back = weights_for_source(ours, arch, 'mmpretrain')
    assert {key: value.shape for key, value in back.items()} == {
        key: value.shape for key, value in resnet18.items()
    }
    alone = {key: value for key, value in ours.items() if key.startswith('backbone.')}
    assert set(weights_for_source(alone, arch, 'mmpretrain')) == {
        key for key in resnet18 if key.startswith('backbone.')
    }


def test_there_is_no_way_back_to_what_does_not_exist():
    for name, source, message in (
        ('EfficientNet-B0', 'mmpretrain', r'its efficientnet-b0 has padding=same and eps=0.001'),
        ('RegNetY-400MF', 'mmpretrain', 'mmpretrain has no such network$'),
        ('scalenet-s0', 'mmpretrain', 'mmpretrain has no such network$'),
        ('ResNet-18', 'torchvision', "source='torchvision' is not one of"),
    ):
        arch = get_arch(name)
        weights = build_network(arch, meta=True).state_dict()
        with pytest.raises(ValueError, match=message):
            weights_for_source(weights, arch, source)
    with pytest.raises(ValueError, match=r'missing: backbone\.'):
        weights = {'head.fc.weight': torch.zeros(3, 512), 'head.fc.bias': torch.zeros(3)}
        weights_for_source(weights, get_arch('ResNet-18'), 'mmpretrain')


def test_every_name_of_timm_that_is_converted_is_known_by_name():
    for name in source_names('timm'):
        assert get_arch(name) == get_arch(f'{name}.a1_in1k') == matching_arch(name, 'timm')
    # A preset's name is that of timm's network of it.
    assert matching_arch('RegNetZ-4GF', 'timm').head.channels == 0
    assert matching_arch('regnetz_040_h.ra3_in1k', 'timm').head.channels == 1536
    assert matching_arch('tf_efficientnet_b0.ns_jft_in1k', 'timm').stem.padding == 'same'
