"""Scaling rules applied to configs of mmpretrain's backbones."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmpretrain.models import build_backbone, build_classifier

from mmscale.apis.networks import build_module
from mmscale.apis.scaling.adapters import (
    ADAPTERS,
    Adapter,
    config_cost,
    find_adapter,
    scale_config,
)
from mmscale.apis.scaling.archs import scale
from mmscale.apis.scaling.backbones import match_config
from mmscale.apis.scaling.model_settings import scaled_heads
from mmscale.arch import Scaling, group_widths, scaling_rule
from mmscale.cost import Cost, LatencyModel, LatencySetting
from mmscale.cost.matching import NotReachable

# Small members of each kind: a count of theirs takes a fraction of a second.
BASES = {
    'VisionTransformer': dict(
        type='VisionTransformer',
        arch=dict(embed_dims=192, num_layers=5, num_heads=3, feedforward_channels=768),
    ),
    'SwinTransformer': dict(
        type='SwinTransformer',
        arch=dict(embed_dims=96, depths=[1, 1, 3, 1], num_heads=[3, 6, 12, 24]),
    ),
    'ConvNeXt': dict(type='ConvNeXt', arch='atto'),
    'MobileNetV2': dict(type='MobileNetV2'),
    'ResNet': dict(type='ResNet', depth=18),
    'RegNet': dict(
        type='RegNet',
        arch=dict(w0=48, wa=27.89, wm=2.09, group_w=8, depth=8, bot_mul=1.0),
        strides=(2, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(2,),
    ),
}
RULES = ('d', 'w', 'r', 'dwr', 'dWr')
# Two of the three, which are combined alike for all.
PAIRS = [(name, rule) for name in ('SwinTransformer', 'RegNet') for rule in ('dw', 'dr', 'wr')]
# A head more or less leaves a gap at twice the flops.
UNREACHABLE = {('SwinTransformer', 'w'), ('SwinTransformer', 'wr')}


def setting(config, path):
    for key in path.split('.'):
        config = config[key]
    return config


@pytest.mark.parametrize(
    ('name', 'rule'), [*((name, rule) for name in BASES for rule in RULES), *PAIRS]
)
def test_twice_the_flops_are_met_or_refused_clearly(name, rule):
    base = BASES[name]
    try:
        match = match_config(base, rule, 2.0)
    except NotReachable as error:
        assert (name, rule) in UNREACHABLE
        for near in (error.below, error.above):
            assert near is None or abs(near.achieved / near.target - 1) > 0.1
            assert near is None or str(near) in str(error)
        return
    assert (name, rule) not in UNREACHABLE
    flops = config_cost(base).flops
    assert match.target == 2 * flops
    assert 1.8 * flops <= match.achieved <= 2.2 * flops
    assert match.cost == config_cost(match.network.model, match.resolution)
    # What the rule does not scale stays as it was.
    if 'r' not in rule:
        assert match.resolution == 224
    if rule == 'r':
        assert match.cost.params == pytest.approx(config_cost(base).params, rel=0.1)
    if 'w' not in rule.lower():
        plain, _ = scale_config(base, Scaling())
        backbone = find_adapter(base)
        for path in backbone.width:
            assert setting(match.network.model, path) == setting(plain, path)


@pytest.mark.parametrize('name', BASES)
def test_nothing_changes_at_one(name):
    base = copy.deepcopy(BASES[name])
    scaled, resolution = scale_config(base, Scaling(), 224)
    assert base == BASES[name]
    assert resolution == 224
    assert config_cost(scaled) == config_cost(base)
    assert set(build_module(scaled, meta=True).state_dict()) == set(
        build_module(base, meta=True).state_dict()
    )
    again, _ = scale_config(scaled, Scaling(), 224)
    assert again == scaled


@pytest.mark.parametrize('name', BASES)
def test_scaled_network_computes_and_learns(name):
    scaled, resolution = scale_config(BASES[name], Scaling(1.6, 1.3, 0.3), 224)
    assert resolution % 16 == 0
    net = build_module(scaled)
    net.train()
    output = net(torch.zeros(2, 3, resolution, resolution))[-1]
    output.sum().backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


@pytest.mark.parametrize('rule', ['w', 'dWr', 'dWr_gfix'])
def test_settings_of_a_regnet_say_what_is_built(rule):
    base = dict(type='RegNet', arch='regnetx_400mf')
    scaled, _ = scale_config(base, scaling_rule(rule).scaling(2.0), 224)
    net = build_module(scaled, meta=True)
    arch = scale('RegNetX-400MF', rule, 2.0)[0].arch
    assert scaled['stage_widths'] == net.stage_widths == list(arch.widths)
    assert [scaled['group_width']] * 4 == net.group_widths == list(group_widths(arch))


def test_what_each_scaling_becomes():
    wide, _ = scale_config(BASES['VisionTransformer'], Scaling(1, 2, 1))
    assert wide['arch'] == dict(
        embed_dims=384, num_layers=5, num_heads=6, feedforward_channels=1536
    )
    large, side = scale_config(BASES['SwinTransformer'], Scaling(2, 1, 1.7))
    assert (side, large['window_size'], large['img_size']) == (384, 12, 384)
    assert large['arch']['depths'] == [2, 2, 6, 2]
    wide, _ = scale_config(BASES['SwinTransformer'], Scaling(1, 4 / 3, 1))
    assert wide['arch']['num_heads'] == [4, 8, 16, 32]
    assert wide['arch']['embed_dims'] == 128
    wide, _ = scale_config(BASES['RegNet'], Scaling(1, 2, 1))
    assert wide['group_width'] == 16
    kept, _ = scale_config(BASES['RegNet'], Scaling(1, 2, 1, 1.0))
    assert kept['group_width'] == 8
    assert kept['stage_widths'] == wide['stage_widths']
    wide, _ = scale_config(BASES['ResNet'], Scaling(1.5, 1.2, 1))
    assert (wide['base_channels'], wide['stage_blocks']) == (80, [3, 3, 3, 3])
    wide, _ = scale_config(BASES['MobileNetV2'], Scaling(1, 1.4, 1))
    assert wide['widen_factor'] == 1.4


@pytest.mark.parametrize(
    ('backbone', 'neck', 'head'),
    [
        (dict(type='ResNet', depth=18), dict(type='GlobalAveragePooling'), 512),
        (dict(type='MobileNetV2'), dict(type='GlobalAveragePooling'), 1280),
        (dict(type='ConvNeXt', arch='atto'), None, 320),
        (BASES['VisionTransformer'], None, 192),
    ],
)
def test_head_follows(backbone, neck, head):
    kind = 'VisionTransformerClsHead' if 'Vision' in backbone['type'] else 'LinearClsHead'
    model = dict(
        type='ImageClassifier',
        backbone=backbone,
        neck=neck,
        head=dict(type=kind, num_classes=5, in_channels=head),
    )
    scaled, resolution = scale_config(model, Scaling(1, 1.5, 1.15))
    assert scaled['head']['in_channels'] > head
    assert model['head']['in_channels'] == head
    net = build_classifier(scaled)
    net.eval()
    assert net(torch.zeros(1, 3, resolution, resolution)).shape == (1, 5)


def test_parameters_of_a_classifier_are_matched():
    neck = dict(type='GlobalAveragePooling')
    head = dict(type='LinearClsHead', num_classes=2000, in_channels=512)
    backbone = dict(type='ResNet', depth=18)
    model = dict(type='ImageClassifier', backbone=backbone, neck=neck, head=head)
    match = match_config(model, 'w', 2.0, metric='params')
    assert match.target == 2 * sum(p.numel() for p in build_classifier(model).parameters())
    found = sum(p.numel() for p in build_classifier(match.network.model).parameters())
    assert match.achieved == found == pytest.approx(match.target, rel=0.1)


def test_necks_of_several_features_follow():
    model = dict(
        type='ImageClassifier',
        backbone=dict(type='ResNet', depth=18, out_indices=(1, 2, 3)),
        neck=dict(type='HRFuseScales', in_channels=(128, 256, 512)),
    )
    scaled, _ = scale_config(model, Scaling(1, 2, 1))
    assert scaled['neck']['in_channels'] == [256, 512, 1024]


@given(
    heads=st.integers(1, 24),
    size=st.sampled_from([16, 24, 32, 48, 64, 80, 20]),
    multiplier=st.floats(0.5, 4),
)
def test_heads_divide_the_width_and_keep_their_size(heads, size, multiplier):
    number, width = scaled_heads(heads * size, heads, multiplier, 'free')
    assert number >= 1
    assert 0.74 * size <= width <= 1.34 * size
    wanted = heads * size * multiplier
    nearest = max(1, round(wanted / size)) * size
    assert abs(number * width - wanted) <= abs(nearest - wanted)
    assert scaled_heads(heads * size, heads, 1.0, 'free') == (heads, size)
    assert scaled_heads(heads * size, heads, multiplier) == (
        max(1, round(heads * multiplier)),
        size,
    )


@pytest.mark.parametrize('name', ['VisionTransformer', 'SwinTransformer'])
def test_heads_keep_their_width_and_are_added(name):
    base = BASES[name]['arch']
    heads = base['num_heads']
    for multiplier in (0.4, 1.1, 1.37, 1.5, 2.2, 3.6):
        arch = scale_config(BASES[name], Scaling(1, multiplier, 1))[0]['arch']
        first = arch['num_heads'] if name == 'VisionTransformer' else arch['num_heads'][0]
        size = 64 if name == 'VisionTransformer' else 32
        assert arch['embed_dims'] == first * size
        if name == 'SwinTransformer':
            assert arch['num_heads'] == [first * 2**stage for stage in range(4)]
        else:
            assert arch['feedforward_channels'] == 4 * arch['embed_dims']
    assert base['num_heads'] == heads
    free = scale_config(BASES[name], Scaling(1, 1.25, 1), head_width='free')[0]['arch']
    assert free['embed_dims'] == 1.25 * base['embed_dims']


@pytest.mark.parametrize('rule', ['w', 'wr', 'dWr'])
def test_a_matched_transformer_has_heads_of_the_same_width(rule):
    arch = match_config(BASES['VisionTransformer'], rule, 2.0).network.model['arch']
    assert arch['embed_dims'] == 64 * arch['num_heads']
    assert 3 <= arch['feedforward_channels'] / arch['embed_dims'] <= 5
    assert arch['feedforward_channels'] % 8 == 0


def test_latency_budget():
    base = BASES['ResNet']
    costs = [Cost(10**9, 1, 10**6), Cost(2 * 10**9, 1, 10**7), Cost(4 * 10**9, 1, 10**6)]
    times = [1e-6 * cost.acts for cost in costs]
    model = LatencyModel.fit(costs, times, LatencySetting())
    match = match_config(base, 'w', 1.5, metric='latency', latency_model=model)
    assert match.achieved == pytest.approx(1.5 * model.predict(config_cost(base)), rel=0.1)
    assert match.cost.acts == pytest.approx(1.5 * config_cost(base).acts, rel=0.1)


def test_unreachable_budget_names_the_nearest():
    with pytest.raises(NotReachable) as error:
        match_config(BASES['ResNet'], 'd', 1.1, tolerance=0.01)
    below, above = error.value.below, error.value.above
    assert below.achieved < below.target < above.achieved
    assert 'within 0.01 is not reachable; the nearest are flops' in str(error.value)


def test_adapter_of_a_few_lines(monkeypatch):
    monkeypatch.setitem(
        ADAPTERS,
        'VGG',
        Adapter(explicit=lambda _: {}, depth=(), width=(), stride=lambda _: 8),
    )
    scaled, resolution = scale_config(dict(type='VGG', depth=11), Scaling(1, 1, 1.1))
    assert (scaled, resolution) == (dict(type='VGG', depth=11), 248)


@pytest.mark.parametrize(
    ('config', 'kwargs', 'message'),
    [
        (dict(type='EfficientNet', arch='b0'), {}, r"EfficientNet: .*type='mmscale.ArchNet'"),
        (dict(type='mmscale.ArchNet', arch='x'), {}, 'ArchNet: .*scale its Arch'),
        (dict(type='HRNet', arch='w18'), {}, "'HRNet' has no adapter .*; there are ConvNeXt, Mob"),
        (dict(type='mmdet.HRNet'), {}, "'mmdet.HRNet' has no adapter .* of mmdet"),
        (dict(), {}, 'None has no adapter'),
        (dict(type='ResNet', depth=7), {}, 'ResNet cannot be built: .*invalid depth 7'),
        (BASES['ResNet'], dict(factor=0), 'factor=0 must be'),
        (BASES['ResNet'], dict(factor=float('nan')), 'factor=nan must be'),
        (BASES['ResNet'], dict(rule='z'), "'z'"),
        (BASES['ResNet'], dict(metric='speed'), "metric='speed' is not one of flops, params"),
        (BASES['ResNet'], dict(metric='latency'), 'needs a latency_model'),
        (BASES['ResNet'], dict(tolerance=0), 'tolerance=0 must be a number above 0 and below 1'),
        (BASES['ResNet'], dict(resolution=0), 'resolution=0 must be'),
    ],
)
def test_bad_input_is_refused(config, kwargs, message):
    with pytest.raises(ValueError, match=message):
        match_config(config, **{'rule': 'w', 'factor': 2.0, **kwargs})


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        (dict(type='mmscale.ScalableResNet', stage_blocks=[1, 2]), r'must have 4 entries'),
        (
            dict(type='mmscale.ScalableResNet', stage_blocks=[1, 2, 0, 1]),
            r'stage_blocks\[2\]=0 must be an integer of 1 or more',
        ),
        (dict(type='mmscale.ScalableMobileNetV2', stage_blocks=[1]), 'must have 7 entries'),
        (
            dict(type='mmscale.ScalableRegNet', stage_widths=[8], stage_blocks=[], group_width=8),
            r'stage_blocks=\(\) must have',
        ),
    ],
)
def test_bad_depths_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(config)


def test_a_model_that_scaling_spoils_names_the_settings_that_changed():
    neck = dict(type='LinearNeck', in_channels=512, out_channels=512, gap_dim=2)
    model = dict(
        type='ImageClassifier',
        backbone=dict(type='ResNet', depth=18),
        neck=neck,
        head=dict(type='LinearClsHead', num_classes=10, in_channels=512),
    )
    with pytest.raises(ValueError, match='do not go with the others') as caught:
        match_config(model, 'w', 2, resolution=64)
    message = str(caught.value)
    assert 'backbone.base_channels=' in message
    assert 'head.in_channels=' in message
    assert '(was 512)' in message
    assert 'neck.out_channels' not in message
    assert '\n' not in message
