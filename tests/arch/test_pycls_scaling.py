"""The pycls rule: a second derivation from lists of numbers, and properties on any network."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmscale.arch import (
    PYCLS_ROUNDING,
    SCALING_RULES,
    Arch,
    Block,
    Head,
    Rounding,
    Scaling,
    SqueezeExcite,
    Stem,
    apply_scaling,
    efficientnet,
    get_arch,
    group_widths,
    preset_names,
    regnet,
    scaling_rule,
)
from mmscale.arch.presets import _REGNETS

NAMES = [name for name in preset_names() if not name.startswith('scalenet')]


def scale(base, rule, factor, rounding=None):
    return apply_scaling(base, scaling_rule(rule).scaling(factor), 'pycls', rounding)


def compatible(widths, ratios, groups):
    """Bottlenecks divisible by their groups."""
    found = [], []
    for width, ratio, group in zip(widths, ratios, groups, strict=True):
        inner = int(max(1, width * ratio))
        group = int(min(group, inner))
        unit = int(np.lcm(group, int(ratio))) if ratio > 1 else group
        inner = max(unit, int(round(inner / unit) * unit))
        found[0].append(int(inner / ratio))
        found[1].append(group)
    return found


def regnet_stages(depth, w0, wa, wm, group_width, ratio):
    """Depths, widths and group widths of a RegNet, block by block."""
    widths = []
    for index in range(depth):
        level = round(math.log((w0 + wa * index) / w0) / math.log(wm))
        widths.append(round(w0 * wm**level / 8) * 8)
    stages = sorted(set(widths))
    ratios = [ratio] * len(stages)
    return [widths.count(width) for width in stages], *compatible(
        stages, ratios, [group_width] * len(stages)
    )


def scaled_stages(depths, widths, groups, ratio, rule, factor):
    """Depths, widths and group widths of a scaled AnyNet."""
    depth, width = factor**rule.depth, factor**rule.width
    group = width if rule.group_width is None else factor**rule.group_width
    depths = [max(1, round(d * depth)) for d in depths]
    widths = [max(1, round(w * width / 8)) * 8 for w in widths]
    groups = [max(1, round(g * group)) for g in groups]
    groups = [g if g <= 2 else 4 if g <= 5 else round(g / 8) * 8 for g in groups]
    return depths, *compatible(widths, [ratio] * len(widths), groups)


@pytest.mark.parametrize('name', _REGNETS)
def test_every_regnet_under_every_rule(name):
    ratio = 4 if name.startswith('Z') else 1
    base = get_arch(f'RegNet{name}')
    stages = regnet_stages(*_REGNETS[name], ratio)
    assert [list(x) for x in (base.depths, base.widths, group_widths(base))] == list(stages)
    for rule in SCALING_RULES.values():
        for factor in (1, 2, 4, 8, 16, 32, 0.5, 3.7):
            arch = scale(base, rule, factor)
            found = [list(x) for x in (arch.depths, arch.widths, group_widths(arch))]
            assert found == list(scaled_stages(*stages, ratio, rule, factor)), (rule.name, factor)
            assert arch.resolution == round(base.resolution * factor**rule.resolution / 4) * 4
            assert (arch.stem, arch.head) == (base.stem, base.head)
            for block in arch.blocks:
                assert block.hidden_channels == block.out_channels * ratio
                if block.se:
                    assert block.se.channels == max(1, round(block.in_channels / 4))


@pytest.mark.parametrize('name', ['EfficientNet-B1', 'EfficientNet-B4', 'EfficientNet-Lite2'])
def test_every_rule_on_efficientnets(name):
    base = get_arch(name)
    for rule in SCALING_RULES.values():
        for factor in (1, 2, 8, 32, 0.5):
            arch = scale(base, rule, factor)
            depth, width = factor**rule.depth, factor**rule.width

            def wide(channels, width=width):
                return max(1, round(channels * width / 8)) * 8

            assert arch.depths == tuple(max(1, round(d * depth)) for d in base.depths)
            assert arch.widths == tuple(map(wide, base.widths))
            assert arch.stem.out_channels == wide(base.stem.out_channels)
            assert arch.head.channels == wide(base.head.channels)
            assert group_widths(arch) is None
            for i, block in enumerate(arch.blocks):
                expansion = 6 if i >= arch.depths[0] else 1
                assert block.hidden_channels == block.groups == expansion * block.in_channels
                assert block.kind == ('mbconv' if expansion == 6 else 'dsconv')
                if block.se:
                    assert block.se.channels == block.in_channels // 4


def test_factor_1_is_the_identity():
    for name in NAMES:
        for rule in SCALING_RULES:
            assert scale(get_arch(name), rule, 1) == get_arch(name), (name, rule)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([*NAMES, 'scalenet-s0', 'scalenet-s2-search']),
    st.sampled_from(sorted(SCALING_RULES)),
    st.floats(0.25, 32),
    st.sampled_from([PYCLS_ROUNDING, Rounding('nearest', 16, 32, strict=True)]),
)
def test_any_network_scales_to_a_valid_one(name, rule, factor, rounding):
    base = get_arch(name)
    # Arch and Block check that neighbours fit and that groups divide.
    arch = scale(base, rule, factor, rounding)
    assert Arch.from_json(arch.to_json()) == arch
    assert arch.strides == base.strides
    assert len(arch.stages) == len(base.stages)
    assert arch.resolution % rounding.resolution_divisor == 0
    assert {block.kind for block in arch.blocks} == {block.kind for block in base.blocks}
    for few, many in zip(base.stages, arch.stages, strict=True):
        assert [block.kernel for block in many] == [
            few[min(i, len(few) - 1)].kernel for i in range(len(many))
        ]
        assert all((block.se is None) == (few[-1].se is None) for block in many[len(few) :])
        for block in many[len(few) :]:
            assert (block.stride, block.residual) == (1, 'identity')
    if rounding.strict:
        for block in arch.blocks:
            assert block.out_channels % rounding.channel_divisor == 0
            assert block.hidden_channels % rounding.channel_divisor == 0
    if group_widths(base) is None:
        assert all(width % rounding.channel_divisor == 0 for width in arch.widths)
        assert all(block.depthwise for block in arch.blocks)
    else:
        for block, group_width in zip(
            (stage[-1] for stage in arch.stages), group_widths(arch), strict=True
        ):
            assert block.groups * group_width == block.grouped_widths[0]
            # A multiple of 8, unless it is the whole bottleneck.
            assert group_width in (1, 2, 4) or group_width % 8 == 0 or block.groups == 1


@pytest.mark.parametrize('name', ['ResNet-18', 'ResNet-50'])
def test_a_dense_network_stays_dense(name):
    base = get_arch(name)
    for rule in ('w', 'w_gfix', 'dWr', 'dWr_gfix', 'dwr_gfix'):
        arch = scale(base, rule, 4)
        assert all(block.groups == 1 for block in arch.blocks)
        assert arch == scale(base, rule.removesuffix('_gfix'), 4)
        assert all(new > old for new, old in zip(arch.widths, base.widths, strict=True))


def test_dense_bottlenecks_of_pycls():
    # ResNet-50 at d1_w8_g8_r1 and factor 4: bottlenecks of 222 and 446 channels.
    arch = scale(get_arch('ResNet-50'), 'dWr', 4)
    assert group_widths(arch) == (112, 222, 446, 888)
    assert arch.widths == (448, 888, 1784, 3552)
    assert scale(get_arch('ResNet-50'), 'g', 4) == get_arch('ResNet-50')


def test_widths_that_are_no_multiples_of_8():
    # RegNetZ-4GF at wg and factor 8 in pycls: groups of 24 in bottlenecks of 4 times the width.
    base = get_arch('RegNetZ-4GF')
    assert scale(base, 'w', 8).widths == (138, 294, 678, 1494)
    strict = scale(base, 'w', 8, replace(PYCLS_ROUNDING, strict=True))
    assert all(width % 8 == 0 for width in strict.widths)
    assert group_widths(strict) == (24, 24, 24, 24)


def test_groups_of_one_channel_are_told_from_efficientnets():
    base = regnet('z', 21, 16, 10.7, 2.51, group_width=1)
    assert group_widths(base) == (1,) * len(base.stages)
    arch = scale(base, 'w', 4)
    assert group_widths(arch) == (2,) * len(base.stages)
    assert (arch.stem, arch.head) == (base.stem, base.head)


@pytest.mark.parametrize('kind', ['x', 'y'])
def test_groups_of_one_channel_grow_with_the_width(kind):
    base = regnet(kind, 23, 40, 50.5, 2.1, group_width=1)
    assert group_widths(scale(base, 'w', 4)) == (2,) * len(base.stages)
    assert group_widths(scale(base, 'w', 64)) == (8,) * len(base.stages)
    assert group_widths(scale(base, 'w_gfix', 4)) == (1,) * len(base.stages)
    assert group_widths(scale(base, 'g', 16)) == (16,) * len(base.stages)


@pytest.mark.parametrize('ratio', [0.25, 0.15, 0.3, 0.0625, 0.125, 0.1])
def test_squeeze_ratio_of_few_blocks(ratio):
    # Blocks of 32 and 112 channels in: 0.15 of them fits 2/13 as well.
    base = regnet('z', 5, 112, 1.0, 2.5, group_width=16, se_ratio=ratio)
    for block in scale(base, 'w', 30).blocks:
        assert block.se.channels == round(block.in_channels * ratio)


def test_squeeze_ratio_is_that_of_all_blocks():
    base = scale(get_arch('RegNetZ-4GF'), 'w', 8)  # squeezes of round(138 / 4) = 34 and so on
    again = scale(base, 'd', 2)
    assert again.stages[0][-1].se.channels == round(138 / 4)
    third = replace(
        get_arch('EfficientNet-B0'),
        stages=tuple(
            tuple(
                replace(block, se=SqueezeExcite(block.in_channels // 3, 'silu', 'sigmoid'))
                for block in stage
            )
            for stage in get_arch('EfficientNet-B0').stages
        ),
    )
    for block in scale(third, 'w', 3).blocks:
        assert block.se.channels == block.in_channels // 3


def test_squeezes_without_a_common_ratio_follow_the_hidden_width():
    base = get_arch('MobileNetV3-Large')
    for old, new in zip(base.blocks, scale(base, 'w', 4).blocks, strict=True):
        assert new.hidden_channels == 2 * old.hidden_channels
        assert new.se is None if old.se is None else new.se.channels == 2 * old.se.channels


def test_residuals_appear_and_vanish_with_equal_widths():
    narrow = scale(get_arch('ResNet-18'), 'w', 4)
    assert get_arch('ResNet-18').blocks[0].residual == 'identity'
    assert narrow.blocks[0].residual == 'projection'  # the stem is not widened
    plain = get_arch('EfficientNet-B0')
    stages = [tuple(replace(b, residual='none') for b in stage) for stage in plain.stages]
    plain = replace(plain, stages=tuple(stages))
    scaled = scale(plain, 'dwr', 8)
    assert scaled.depths[0] == 2
    assert {block.residual for block in scaled.blocks} == {'none'}


def test_uneven_widths_do_not_explode():
    stem = Stem(16, act='relu')
    pruned = Block('bottleneck', 3, 1, 16, 101, 67, 1, act='relu', residual='projection')
    grouped = Block(
        'bottleneck', 3, 2, 67, 48, 37, 6, act='relu', residual='projection', grouped_channels=30
    )
    base = Arch(64, stem, ((pruned,), (grouped,)), Head(num_classes=3))
    arch = scale(base, 'dw', 16)
    assert [block.out_channels for stage in arch.stages for block in stage[:1]] == [136, 72]
    assert arch.stages[0][0].hidden_channels == 200  # one group of 25 times 8
    first, *rest = arch.stages[1]
    assert (first.grouped_widths, first.groups) == ((96, 60), 6)
    assert len(rest) == 3
    assert all(block.residual == 'identity' for block in rest)


def test_strides_of_repeated_first_blocks():
    arch = scale(efficientnet(), 'd', 5)
    assert arch.strides == efficientnet().strides
    assert arch.depths == (5, 10, 10, 15, 15, 20, 5)


def test_group_width_is_of_the_pycls_rule():
    scaling = Scaling(2, 2, 1, group_width=1)
    with pytest.raises(ValueError, match=r"group_width=1\.0 is for rule='pycls' alone"):
        apply_scaling(get_arch('scalenet-s0'), scaling, 'search')
    assert 'group_width' not in Scaling(2, 2, 1).to_json()
    assert Scaling(**scaling.to_json()) == scaling
    assert scaling.to_json()['group_width'] == 1


def test_arithmetic_of_extremes():
    smallest = scale(get_arch('RegNetY-200MF'), 'dWr', 1e-6)
    assert smallest.widths == (8, 8, 8, 8)
    assert smallest.depths == (1, 1, 1, 2)
    with pytest.raises(ValueError, match='must be an integer in'):
        scale(get_arch('EfficientNet-B7'), 'w', 1e5)
