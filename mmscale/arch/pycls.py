"""The width rule of pycls, shape by shape ("Fast and Accurate Model Scaling", 2103.06877)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from mmscale.arch.arch import Arch, Block
from mmscale.arch.blocks import (
    chosen_without_residual,
    conv_groups,
    nearest,
    residual_between,
)
from mmscale.arch.rounding import Rounding, Scaling


@dataclass(frozen=True)
class _Kinship:
    """Which of pycls' two kinds of networks a base model is, and its ratios.

    Attributes:
        anynet: AnyNet (ResNe(X)t, RegNet) or, if not, EffNet (stages of depthwise blocks).
        grouped: Whether there is any group convolution.
        residual: Whether there is any residual connection.
        squeeze: Squeeze width over the block's input width, where all blocks share one ratio.
    """

    anynet: bool
    grouped: bool
    residual: bool
    squeeze: Fraction | None

    def squeezed(self, channels: int, ratio: Fraction) -> int:
        """Squeeze width of `channels`, rounded as its kind does."""
        if self.anynet:
            return nearest(channels * ratio.numerator, ratio.denominator)
        return max(1, channels * ratio.numerator // ratio.denominator)


def _one_ratio(stages: Iterable[Sequence[Block]], side: str) -> bool:
    """Whether in every network stage the hidden width is one multiple of `side`'s width."""
    return all(
        len({Fraction(block.hidden_channels, getattr(block, side)) for block in stage}) <= 1
        for stage in stages
    )


@lru_cache(maxsize=256)
def _kinship(base: Arch) -> _Kinship:
    # Convs are in no network of pycls.
    stages = [[block for block in stage if block.kind != 'conv'] for stage in base.stages]
    blocks = [block for stage in stages for block in stage]
    anynet = any(
        block.kind in ('bottleneck', 'basic')
        or (block.kind in ('mbconv', 'dsconv') and not block.depthwise)
        for block in blocks
    )
    if not anynet:
        # A RegNetZ with groups of one channel is told by hidden widths that follow the output.
        anynet = not _one_ratio(stages, 'in_channels') and _one_ratio(stages, 'out_channels')
    grouped = any(block.groups > 1 for block in blocks)
    residual = any(block.residual != 'none' for block in base.blocks)
    kinship = _Kinship(anynet, grouped, residual, None)
    squeezes = [(block.in_channels, block.se.channels) for block in blocks if block.se]
    if squeezes:
        channels, squeeze = max(squeezes)
        # Few blocks fit many ratios: 1/16 and 3/20, which people write, come before 2/13.
        for denominator in sorted(range(1, 65), key=lambda d: (64 % d > 0, 240 % d > 0, d)):
            numerator = round(Fraction(squeeze * denominator, channels))
            ratio = Fraction(numerator, denominator)
            if numerator and all(kinship.squeezed(c, ratio) == s for c, s in squeezes):
                return replace(kinship, squeeze=ratio)
    return kinship


def group_widths(arch: Arch) -> tuple[int, ...] | None:
    """Channels per group of each network stage's k x k convolutions (of its last block).

    A dense convolution is one group. None for networks of depthwise blocks (EfficientNet,
    MobileNet, ScaleNet), whose groups are of one channel and stay so.
    """
    if not _kinship(arch).anynet:
        return None
    return tuple(stage[-1].grouped_widths[0] // stage[-1].groups for stage in arch.stages)


def compatible_widths(
    width: int, ratio: Fraction, group_width: int, rounding: Rounding
) -> tuple[int, int, int]:
    """Makes a bottleneck divisible by its groups (``adjust_block_compatibility`` of pycls).

    Args:
        width: Output width of the block.
        ratio: Hidden over output width.
        group_width: Wanted channels per group.
        rounding: Says whether both widths stay multiples of its divisor.

    Returns:
        Output width, hidden width and channels per group. The hidden width is a multiple of the
        group width; where one width is a whole multiple of the other, it stays so.
    """
    over, under = ratio.numerator, ratio.denominator
    hidden = max(1, width * over // under)
    group_width = min(group_width, hidden)
    divisor = rounding.channel_divisor if rounding.strict else 1
    if over > 1 and under > 1:
        # Uneven widths (pruned networks, which pycls does not have): the output may stay.
        return width, nearest(hidden, 1, math.lcm(group_width, divisor)), group_width
    step = math.lcm(over, divisor, Fraction(divisor * over, under).numerator)
    if rounding.strict and group_width == hidden:  # one group stays one
        group_width = hidden = nearest(hidden, 1, step)
    hidden = nearest(hidden, 1, math.lcm(step, group_width))
    return hidden * under // over, hidden, group_width


def scaled_group_width(channels: int, multiplier: float) -> int:
    """Channels of a group as pycls rounds them: 1, 2, 4 or a multiple of 8."""
    width = max(1, round(channels * multiplier))
    if width <= 5:
        return width if width <= 2 else 4
    return round(width / 8) * 8


def _pycls_block(
    block: Block,
    extra: bool,
    in_channels: int,
    scaling: Scaling,
    rounding: Rounding,
    kin: _Kinship,
) -> Block:
    """Scales a block; an `extra` one repeats it after its network stage."""
    out_channels = rounding.width(block.out_channels, scaling.width)
    hidden, groups = in_channels, math.gcd(block.groups, in_channels)
    if block.kind == 'basic':
        hidden = max(1, out_channels * block.hidden_channels // block.out_channels)
        groups = math.gcd(groups, hidden)
    elif kin.anynet and block.kind in ('mbconv', 'bottleneck'):
        ratio = Fraction(block.hidden_channels, block.out_channels)
        group_width = block.hidden_channels // block.groups
        # Without any group convolution there are no groups to keep: dense stays dense.
        own = kin.grouped and scaling.group_width is not None
        if kin.grouped or not rounding.strict:
            grown = scaling.group_width if own else scaling.width
            group_width = scaled_group_width(group_width, grown)
        else:
            group_width = out_channels * ratio.numerator  # as many as there are
        out_channels, hidden, group_width = compatible_widths(
            out_channels, ratio, group_width, rounding
        )
        groups = hidden // group_width
    elif block.kind != 'dsconv':
        exact = (in_channels * block.hidden_channels, block.in_channels)
        hidden, rest = divmod(*exact)
        if rest or rounding.strict:
            hidden = nearest(*exact, rounding.channel_divisor)
        groups = math.gcd(groups, hidden)
    if block.depthwise and not (kin.anynet and block.kind in ('mbconv', 'bottleneck')):
        groups = hidden
    if block.kind == 'conv':
        hidden, groups = out_channels, conv_groups(block, in_channels, out_channels)
    se = block.se
    if se is not None:
        if kin.squeeze:
            channels = kin.squeezed(in_channels, kin.squeeze)
        else:
            channels = nearest(se.channels * hidden, block.hidden_channels)
        se = replace(se, channels=channels)
    grouped = block.grouped_channels
    if grouped:
        grouped = nearest(grouped * hidden, block.hidden_channels, groups)
    stride = 1 if extra else block.stride
    residual = 'none'
    if kin.residual and (extra or not chosen_without_residual(block)):
        residual = residual_between(block, stride, in_channels, out_channels)
    return replace(
        block,
        stride=stride,
        in_channels=in_channels,
        hidden_channels=hidden,
        out_channels=out_channels,
        groups=groups,
        se=se,
        residual=residual,
        grouped_channels=grouped,
    )


def pycls_scaling(base: Arch, scaling: Scaling, rounding: Rounding) -> Arch:
    """Scales a base Arch by the width rule of pycls, see :func:`mmscale.arch.apply_scaling`."""
    kin = _kinship(base)
    stem, head = base.stem, base.head
    if not kin.anynet:
        stem = replace(stem, out_channels=rounding.width(stem.out_channels, scaling.width))
        for key in ('channels', 'hidden_channels'):
            if getattr(head, key):
                head = replace(head, **{key: rounding.width(getattr(head, key), scaling.width)})
    channels = stem.out_channels
    stages = []
    for stage in base.stages:
        count = rounding.depth(len(stage), scaling.depth)
        scaled: list[Block] = []
        before = None
        for index in range(count):
            extra = index >= len(stage)
            key = (stage[-1] if extra else stage[index], extra, channels)
            # Equal blocks are one object: most blocks of a deep network stage are.
            scaled.append(
                scaled[-1] if key == before else _pycls_block(*key, scaling, rounding, kin)
            )
            before, channels = key, scaled[-1].out_channels
        stages.append(tuple(scaled))
    resolution = rounding.resolution(base.resolution, scaling.resolution)
    return Arch(resolution, stem, tuple(stages), head, base.schema)
