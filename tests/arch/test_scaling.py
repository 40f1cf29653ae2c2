"""Scaling and rounding: decimals stay decimals, shapes grow with the multipliers."""

import math
from fractions import Fraction
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmscale.arch import Rounding, Scaling, apply_scaling, get_arch
from mmscale.arch.arch import Block

HUNDREDTHS = st.integers(100, 400)


@settings(max_examples=500)
@given(st.integers(1, 4096), HUNDREDTHS)
def test_ceil_of_decimals_is_exact(channels, hundredths):
    exact = math.ceil(Fraction(channels * hundredths, 100))
    assert Rounding().width(channels, hundredths / 100) == exact
    assert Rounding().depth(channels, hundredths / 100) == exact
    assert Rounding().resolution(channels, hundredths / 100) == exact


def test_known_binary_errors_do_not_show():
    assert math.ceil(100 * 1.1) == 111  # what plain floats do
    assert Rounding().width(100, 1.1) == 110
    assert Rounding().width(40, 1.2) == 48  # 49 in the released training code, in float32
    assert Rounding().width(320, 1.6) == 512
    assert Rounding().depth(3, 1.36) == 5
    assert Rounding().resolution(224, 2.042) == 458


@settings(max_examples=200)
@given(st.integers(1, 4096), HUNDREDTHS, st.sampled_from([1, 2, 8, 16, 32]))
def test_divisors(channels, hundredths, divisor):
    exact = Fraction(channels * hundredths, 100)
    up = Rounding('ceil', channel_divisor=divisor, resolution_divisor=divisor)
    near = Rounding('nearest', channel_divisor=divisor)
    width = up.width(channels, hundredths / 100)
    assert width % divisor == 0
    assert 0 <= width - exact < divisor
    assert up.resolution(channels, hundredths / 100) == width
    assert up.depth(3, 1.0) == 3
    nearest = near.width(channels, hundredths / 100)
    assert nearest % divisor == 0
    assert nearest == divisor or abs(nearest - exact) <= Fraction(divisor, 2)


@settings(max_examples=40)
@given(
    st.lists(st.tuples(HUNDREDTHS, HUNDREDTHS, HUNDREDTHS), min_size=2, max_size=2),
    st.sampled_from(['search', 'retraining']),
)
def test_every_shape_grows_with_its_multiplier(triples, rule):
    base = get_arch('scalenet-s0-search')
    small = [min(pair) / 100 for pair in zip(*triples, strict=True)]
    large = [max(pair) / 100 for pair in zip(*triples, strict=True)]
    one, other = (
        apply_scaling(base, Scaling(*small), rule),
        apply_scaling(base, Scaling(*large), rule),
    )
    assert one.resolution <= other.resolution
    assert one.stem.out_channels <= other.stem.out_channels
    assert one.head == other.head == base.head
    for few, many in zip(one.stages, other.stages, strict=True):
        assert len(few) <= len(many)
        # Blocks of one slot, so that extra blocks are compared with extra blocks.
        for narrow, wide in zip(few, many, strict=False):
            assert narrow.out_channels <= wide.out_channels
            assert narrow.hidden_channels <= wide.hidden_channels
            assert narrow.se.channels <= wide.se.channels
            assert (narrow.kernel, narrow.stride) == (wide.kernel, wide.stride)


def test_depth_is_rounded_up_in_every_network_stage():
    base = get_arch('scalenet-s0')
    for depth in (1, 1.04, 1.36, 1.64, 2, 3.3):
        arch = apply_scaling(base, Scaling(depth=depth), 'retraining')
        exact = [math.ceil(Fraction(str(depth)) * blocks) for blocks in base.depths]
        assert list(arch.depths) == exact


def test_dense_blocks_scale_and_pruned_widths_with_them():
    arch = get_arch('scalenet-s0')
    pruned = Block('bottleneck', 3, 1, 320, 20, 320, 1, residual='identity', grouped_channels=30)
    base = type(arch)(224, arch.stem, (*arch.stages, (pruned,)), arch.head)
    block = apply_scaling(base, Scaling(width=1.5, depth=2), 'search').stages[-1][1]
    assert (block.in_channels, *block.grouped_widths, block.out_channels) == (480, 30, 45, 480)


def test_groups_keep_their_channels():
    arch = get_arch('scalenet-s0')
    grouped = Block('bottleneck', 3, 1, 320, 32, 320, groups=4)
    base = type(arch)(224, arch.stem, (*arch.stages, (grouped,)), arch.head)
    for width, hidden in ((1.0, 32), (1.2, 40), (1.5, 48), (1.51, 56)):
        block = apply_scaling(base, Scaling(width=width)).stages[-1][0]
        assert (block.hidden_channels, block.groups) == (hidden, hidden // 8)


def test_groups_that_the_rule_cannot_scale_are_named():
    arch = get_arch('scalenet-s0')
    grouped = Block('fused_mbconv', 3, 1, 320, 32, 320, groups=4)
    base = type(arch)(224, arch.stem, (*arch.stages, (grouped,)), arch.head)
    with pytest.raises(ValueError, match='groups=4 of a fused_mbconv block'):
        apply_scaling(base, Scaling(width=1.5))


def test_bad_multipliers(refuses):
    bad = [0, -1, float('nan'), float('inf'), True, '1', 1000]
    refuses(Scaling, depth=[*bad, None], width=bad, resolution=bad, group_width=bad)


def test_whole_multipliers_are_stored_as_they_are_written():
    assert repr(Scaling(1, 2, 3)) == repr(Scaling(1.0, 2.0, 3.0))


def test_bad_rounding_and_rule(refuses):
    refuses(Rounding, mode=['floor'], channel_divisor=[0, 1.5], resolution_divisor=[True])
    refuses(partial(apply_scaling, get_arch('scalenet-s0'), Scaling()), rule=['timm', None])
