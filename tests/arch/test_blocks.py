"""Blocks taken apart and between other widths; convs in every rule of scaling."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmscale.arch import Arch, Block, Head, Scaling, SqueezeExcite, Stem, apply_scaling
from mmscale.arch.adjust import adjust, single_adjustments
from mmscale.arch.blocks import convolutions, repeated, rewired, weights
from mmscale.arch.rounding import Rounding
from mmscale.arch.scaling import scale_block, width_rule

WIDTHS = st.integers(1, 48)


@st.composite
def convs(draw):
    """Dense, grouped and depthwise convs."""
    groups = draw(st.sampled_from([1, 1, 2, 3, 8]))
    before = groups * draw(st.integers(1, 6))
    after = before if draw(st.booleans()) else groups * draw(st.integers(1, 6))
    groups = before if before == after and draw(st.booleans()) else groups
    stride = draw(st.integers(1, 2))
    residuals = ['none', 'projection', *(['identity'] if (stride, before) == (1, after) else [])]
    kernel, residual = draw(st.sampled_from([1, 3, 5])), draw(st.sampled_from(residuals))
    return Block('conv', kernel, stride, before, after, after, groups, residual=residual)


@settings(max_examples=300)
@given(convs(), WIDTHS, WIDTHS, st.sampled_from([1, 8]))
def test_convs_between_other_widths_keep_what_groups_they_can(conv, before, after, divisor):
    found = rewired(conv, before, after, divisor)
    assert (found.in_channels, found.hidden_channels, found.out_channels) == (before, after, after)
    assert (found.kernel, found.stride) == (conv.kernel, conv.stride)
    if not conv.depthwise:
        assert found.groups == math.gcd(conv.groups, before, after)
    elif before == after:
        assert found.depthwise
    following = repeated(conv, divisor)
    assert following.in_channels == following.hidden_channels == conv.out_channels
    assert (following.stride, following.residual) == (1, 'identity')


@settings(max_examples=300)
@given(convs(), WIDTHS, st.integers(50, 300))
def test_a_scaled_conv_is_as_wide_as_its_output(conv, before, hundredths):
    width, rounding = hundredths / 100, Rounding()
    for name in ('search', 'retraining'):
        if conv.groups > 1 and not conv.depthwise:
            with pytest.raises(ValueError, match='of a conv block: of group convolutions'):
                scale_block(conv, width, before, width_rule(name), rounding)
            continue
        base = replace(conv, residual='none')
        found = scale_block(base, width, before, width_rule(name), rounding)
        after = rounding.width(conv.out_channels, width)
        assert found.grouped_widths == (before, after)
        assert found.hidden_channels == found.out_channels == after
        assert found.groups == (math.gcd(before, after) if conv.depthwise else 1)


def network(groups=1):
    """As a row of NAS-Bench-Macro, with one conv more."""
    mbconv = dict(act='relu6', residual='identity')
    return Arch(
        32,
        Stem(8, stride=1, act='relu6'),
        (
            (Block('conv', 1, 2, 8, 12, 12, 1), Block('mbconv', 5, 1, 12, 72, 12, 72, **mbconv)),
            (Block('mbconv', 3, 2, 12, 36, 20, 36, act='relu6'),),
            (Block('conv', 1, 2, 20, 40, 40, groups), Block('conv', 3, 1, 40, 40, 40, 40)),
        ),
        Head(64, num_classes=10, act='relu6'),
    )


@pytest.mark.parametrize('rule', ['search', 'retraining', 'pycls'])
@pytest.mark.parametrize('scaling', [Scaling(), Scaling(2.3, 1.7, 1.2), Scaling(1, 0.4, 0.5)])
def test_networks_with_convs_scale(rule, scaling):
    base = network()
    arch = apply_scaling(base, scaling, rule)
    assert (arch == base) == (scaling == Scaling() and rule != 'pycls')
    kinds = [stage[0].kind for stage in arch.stages]
    assert kinds == ['conv', 'mbconv', 'conv']
    last = arch.stages[2]
    for block in (arch.stages[0][0], *last):
        assert block.kind == 'conv'
        assert block.grouped_widths == (block.in_channels, block.out_channels)
    assert all(block.depthwise for block in last[1:])
    # As wide as the same network of mbconvs is: convs are no reason to scale as AnyNets do.
    plain = tuple(
        tuple(replace(b, kind='mbconv', groups=b.hidden_channels) for b in stage)
        for stage in base.stages
    )
    other = apply_scaling(replace(base, stages=plain), scaling, rule)
    assert (arch.stem, arch.widths, arch.depths) == (other.stem, other.widths, other.depths)
    assert arch.head == other.head


def test_pycls_keeps_the_number_of_a_convs_groups_as_far_as_it_divides():
    arch = apply_scaling(network(groups=4), Scaling(width=2), 'pycls')
    conv = arch.stages[2][0]
    assert (conv.grouped_widths, conv.groups) == ((40, 80), 4)
    with pytest.raises(ValueError, match='groups=4 of a conv block'):
        apply_scaling(network(groups=4), Scaling(width=2))


def test_networks_with_convs_are_adjusted_by_one_step():
    base = network()
    for single in single_adjustments(base, 1, 4):
        changed = adjust(base, single)
        assert changed != base
        assert [stage[0].kind for stage in changed.stages] == ['conv', 'mbconv', 'conv']
    wider = adjust(base, next(s for s in single_adjustments(base, 8, 32) if s.kind == 'width'))
    assert wider.stages[0][0].grouped_widths == (8, 20)


def test_parts_of_a_block():
    squeeze = SqueezeExcite(3)
    bottleneck = Block('bottleneck', 3, 2, 8, 6, 10, 3, squeeze, residual='projection')
    sides = [
        (conv.in_channels, conv.out_channels, conv.kernel, conv.groups, conv.strided)
        for conv in convolutions(bottleneck)
    ]
    assert sides == [
        *((8, 6, 1, 1, False), (6, 6, 3, 3, True)),
        *((6, 10, 1, 1, True), (8, 10, 1, 1, True)),
    ]
    assert weights(bottleneck) == 48 + 9 * 6 * 2 + 60 + 80 + 2 * 6 * 3
    (only,) = convolutions(Block('conv', 5, 2, 8, 12, 12, 4))
    assert only.weights == 25 * 8 * 12 // 4
