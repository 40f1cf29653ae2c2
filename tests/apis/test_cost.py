"""Reports of networks by name, Arch and config; the runtime model of a list of networks."""

from dataclasses import replace

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from mmscale.apis.cost import fit_latency, get_cost
from mmscale.apis.networks import build_module, build_network, image_shape
from mmscale.arch import Arch, Block, Head, SqueezeExcite, Stem, get_arch
from mmscale.cost import (
    Cost,
    Latency,
    count,
    count_module,
    explain_arch_difference,
    explain_difference,
    this_device,
)
from mmscale.errors import UsageError
from mmscale.registry import MODELS as SCALE_MODELS


def block(kind, stride, in_channels, hidden, out, groups=1, **kwargs):
    residual = 'identity' if stride == 1 and in_channels == out else 'none'
    return Block(kind, 3, stride, in_channels, hidden, out, groups, residual=residual, **kwargs)


SE = SqueezeExcite(3)
ARCHS = {
    'inverted': Arch(
        37,
        Stem(8, in_channels=1, padding='same'),
        (
            (block('dsconv', 1, 8, 8, 8, 8, se=SE), block('mbconv', 2, 8, 24, 12, 4, se=SE)),
            (block('fused_mbconv', 2, 12, 20, 16), block('mbconv', 1, 16, 30, 16, 30)),
            (block('mbconv', 2, 16, 12, 20, 4, grouped_channels=8, padding='same'),),
        ),
        Head(24, hidden_channels=18, num_classes=5, act='relu6'),
    ),
    'residual': Arch(
        64,
        Stem(6, kernel=7, act='relu', max_pool=True),
        (
            (
                replace(block('basic', 2, 6, 8, 8), residual='projection'),
                block('basic', 1, 8, 6, 8),
            ),
            (
                replace(block('bottleneck', 2, 8, 12, 16, 3, se=SE), residual='projection'),
                block('bottleneck', 1, 16, 12, 16, 4, grouped_channels=8),
            ),
        ),
        Head(num_classes=7),
    ),
    'convs': Arch(
        37,
        Stem(8, act='relu6'),
        (
            (block('conv', 2, 8, 12, 12, 2), block('conv', 1, 12, 12, 12, 12)),
            (replace(block('conv', 2, 12, 16, 16), kernel=1, residual='projection'),),
        ),
        Head(24, num_classes=5),
    ),
    'features': replace(get_arch('scalenet-s0'), head=Head(), resolution=64),
    'hidden': replace(get_arch('scalenet-s0'), head=Head(8, 9), resolution=64),
    **{
        name: get_arch(name)
        for name in ('scalenet-s1', 'RegNetY-400MF', 'RegNetZ-500MF', 'MobileNetV3-Large')
    },
}


@pytest.mark.parametrize('convention', ['mmscale', 'pycls'])
@pytest.mark.parametrize('name', ARCHS)
def test_network_built_and_run_costs_what_its_arch_does(name, convention):
    arch = ARCHS[name]
    counted = count_module(
        build_network(arch, meta=True), image_shape(arch), convention=convention, memory=False
    )
    assert counted.cost == count(arch, convention)


def test_network_on_meta_takes_no_memory_and_a_real_one_computes():
    arch = ARCHS['inverted']
    assert {p.device.type for p in build_network(arch, meta=True).parameters()} == {'meta'}
    output = build_network(arch).eval()(torch.zeros(2, *image_shape(arch)))
    assert output.shape == (2, 5)


def test_every_kind_of_backbone_is_built_without_weights():
    # Swin needs numbers of linspace and an index while it is built.
    net = build_module(dict(type='SwinTransformer', arch='tiny'), meta=True)
    assert all(parameter.is_meta for parameter in net.parameters())
    real = build_module(dict(type='SwinTransformer', arch='tiny'))
    assert count_module(net, (3, 224, 224)) == count_module(real, (3, 224, 224))


@SCALE_MODELS.register_module(force=True)
class CostTestDetector(nn.Module):
    """What mmdet's models look like from outside: boxes in mode ``tensor`` are a nested output."""

    def __init__(self, backbone, data_preprocessor=None):
        super().__init__()
        del data_preprocessor
        self.backbone = MODELS.build(backbone)
        if not float(next(self.backbone.parameters()).detach().sum()) < 1e9:
            raise ValueError('it needs real weights')
        self.bbox_head = nn.Conv2d(512, 4, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        assert data_samples is None
        assert mode == 'tensor'
        return [(self.bbox_head(feature),) for feature in self.backbone(inputs)]


DETECTOR = """
default_scope = 'mmpretrain'
model = dict(
    type='mmscale.CostTestDetector',
    data_preprocessor=dict(mean=[0, 0, 0], pad_size_divisor=32),
    backbone=dict(type='ResNet', depth=18),
)
test_pipeline = [dict(type='Resize', scale=(90, 60), keep_ratio=True)]
"""


def test_config_of_a_detector_that_needs_real_weights(tmp_path):
    path = tmp_path / 'detector.py'
    path.write_text(DETECTOR, encoding='utf-8')
    report = get_cost(str(path), batch=2, compare=True).to_json()
    assert report['resolution'] == [64, 96]
    names = [part['name'] for part in report['parts']]
    assert names[0] == 'backbone.conv1'
    assert names[-1] == 'bbox_head'
    assert report['parts'][-1]['flops'] == 512 * 4 * 2 * 3
    assert report['memory']['batch'] == 2
    assert (
        report['mmengine']['flops']
        == report['flops'] + report['mmengine']['reasons']['batch_norm']
    )
    deeper = get_cost(str(path), 64, options=['model.backbone.depth=34'])
    assert deeper.params > report['params']
    assert deeper.shape == (64, 64)


@pytest.mark.parametrize('name', ARCHS)
def test_what_mmengine_says_of_an_arch_needs_no_network(name):
    arch = ARCHS[name]
    found = explain_arch_difference(arch, 'pycls')
    assert found == explain_difference(build_network(arch), image_shape(arch), convention='pycls')
    assert found.ours == count(arch, 'pycls').flops
    biases = found.reasons.pop('bias additions', 0)
    plain = explain_arch_difference(arch)
    assert (plain.flops, plain.reasons) == (found.flops, found.reasons)
    assert plain.ours - found.ours == biases <= 0


def test_memory_and_latency_of_a_preset():
    report = get_cost('scalenet-s0', 32, memory=True, latency='cpu', batch=2).to_json()
    assert report['memory']['batch'] == report['latency']['setting']['batch'] == 2
    kept = report['memory']['activation_bytes_training']
    # Inputs of convolutions and norms are kept, four bytes each, and little else.
    assert 2 * 2 * 4 * report['acts'] < kept < 5 * 2 * 4 * report['acts']
    assert report['latency']['low_ms'] <= report['latency']['median_ms']
    assert 'memory' not in get_cost('scalenet-s0', 32).to_json()


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('x = 1', 'the config has no model'),
        ("model = dict(type='NoSuchNet')", 'NoSuchNet cannot be built: '),
        ("model = dict(type='ResNet', depth=7)", 'ResNet cannot be built: .*invalid depth 7'),
        (
            "model = dict(type='ImageClassifier', backbone=dict(type='ResNet', depth=18),"
            "neck=dict(type='GlobalAveragePooling'),"
            "head=dict(type='LinearClsHead', num_classes=2, in_channels=9))",
            r'ImageClassifier does not run on an input of shape \(1, 3, 224, 224\)',
        ),
    ],
)
def test_bad_configs_are_refused(text, message, tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(text, encoding='utf-8')
    with pytest.raises(ValueError, match=message) as error:
        get_cost(str(path))
    assert '\n' not in str(error.value)


def test_runtime_model_of_a_list_of_networks():
    measured, shown = [], []

    def measure(module, shape, device, batch, dtype, train, warmup, repeats):
        measured.append((type(module.backbone).__name__, shape, device, batch, dtype, train))
        assert (warmup, repeats) == (1, 2)
        ms = 2.0 + 1e-6 * count_module(module, shape, memory=False).acts
        return Latency(ms, ms, ms, repeats, this_device(device, batch, dtype, train))

    archs = {name: ARCHS[name] for name in ('inverted', 'residual', 'features', 'hidden')}
    model = fit_latency(
        archs,
        batch=3,
        train=True,
        warmup=1,
        repeats=2,
        on_measured=lambda name, latency: shown.append((name, latency.median_ms)),
        measure=measure,
    )
    assert measured == [
        ('ArchNet', image_shape(arch), 'cpu', 3, 'float32', True) for arch in archs.values()
    ]
    assert [name for name, _ in shown] == list(archs)
    assert (model.setting.batch, model.setting.train) == (3, True)
    assert model.predict(Cost(0, 0, 10**6)) == pytest.approx(3.0)
    assert model.pearson['acts'] == pytest.approx(1)


@pytest.mark.parametrize(
    ('names', 'kwargs', 'message'),
    [
        (['inverted', 'residual'], {}, '2 networks are measured, a fit needs 3'),
        (['inverted', 'residual', 'hidden'], dict(device='tpu'), "device='tpu' is not one of"),
    ],
)
def test_nothing_is_measured_that_cannot_be_fitted(names, kwargs, message):
    def measure(*_):
        raise AssertionError

    with pytest.raises(ValueError, match=message):
        fit_latency({name: ARCHS[name] for name in names}, measure=measure, **kwargs)


def test_a_language_model_is_counted_at_the_length_of_its_texts():
    config = 'configs/causal_lm/gpt2-mini_stdlib.py'
    one = get_cost(config, compare=True)
    assert (one.shape, one.shape_source) == ((128,), 'the length of the texts')
    # Of each layer four projections and an MLP of four times the width, and attention; the head.
    layer = 128 * (4 * 128**2 + 2 * 4 * 128**2) + 2 * 128**2 * 128
    assert one.flops == 4 * layer + 128 * 128 * 256
    assert one.to_json()['shape'] == [128]
    assert 'at 128 tokens' in str(one)
    assert "MMEngine's FlopAnalyzer" in str(one.difference)
    many = get_cost(config, batch=3)
    assert (many.cost, many.memory.batch) == (one.cost, 3)
    assert many.memory.peak_bytes_inference > 2 * one.memory.peak_bytes_inference
    with pytest.raises(UsageError, match='is a language model'):
        get_cost(config, shape=(32, 32))


def test_norms_of_several_processes_are_plain_ones_in_one():
    norm = dict(type='MMSyncBN', stats_mode='N', requires_grad=True)
    model = build_module(dict(type='ResNet', depth=18, norm_cfg=norm))
    assert norm == dict(type='MMSyncBN', stats_mode='N', requires_grad=True)
    kinds = {type(part) for part in model.modules() if 'Norm' in type(part).__name__}
    assert kinds == {nn.BatchNorm2d}
