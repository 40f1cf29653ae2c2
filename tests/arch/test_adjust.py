"""Adjustments of a single network stage, against their opposites and against scaling."""

import pytest

from mmscale.arch import Scaling, apply_scaling, get_arch, group_widths
from mmscale.arch.adjust import Adjustment, adjust, single_adjustments, width_step
from mmscale.arch.blocks import repeated


def test_adjustments_are_undone_by_their_opposites():
    for name in ('EfficientNet-B0', 'RegNetY-400MF', 'RegNetZ-4GF', 'ResNet-50', 'ResNet-18'):
        base = get_arch(name)
        for single in single_adjustments(base, 8, 32):
            changed = adjust(base, single)
            assert changed != base
            back = Adjustment(single.kind, -single.step, single.stage)
            # A block that is taken away comes back as its neighbour's twin.
            if single.kind != 'depth' or single.step > 0:
                assert adjust(changed, back) == base, (name, single)


def test_a_wider_stage_keeps_its_group_width_and_expansion():
    base = get_arch('RegNetY-4.0GF')
    step = width_step(base, 1, 8)
    assert step % group_widths(base)[1] == 0
    wider = adjust(base, Adjustment('width', step, 1))
    assert group_widths(wider) == group_widths(base)
    assert wider.widths == (base.widths[0], base.widths[1] + step, *base.widths[2:])
    for block, before in zip(wider.blocks, base.blocks, strict=True):
        ratio = before.hidden_channels / before.out_channels
        assert block.hidden_channels == ratio * block.out_channels


def test_a_repeated_first_block_is_what_scaling_makes_of_it():
    for name in ('RegNetY-400MF', 'RegNetZ-4GF', 'EfficientNet-B0', 'ScaleNet-S0'):
        base = get_arch(name)
        deeper = apply_scaling(base, Scaling(depth=2), 'pycls')
        for stage, doubled in zip(base.stages, deeper.stages, strict=True):
            assert repeated(stage[-1]) == doubled[-1], name


def test_the_last_step_down_is_an_error():
    base = get_arch('RegNetY-400MF')
    with pytest.raises(ValueError, match='depth of network stage 1 by -1: no block would be left'):
        adjust(base, Adjustment('depth', -1, 0))
    with pytest.raises(ValueError, match='width of network stage 1 by -48: no channel'):
        adjust(base, Adjustment('width', -48, 0))
