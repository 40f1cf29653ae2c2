"""Changes one network stage, or the resolution, of an Arch by one step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

from mmscale.arch.arch import Arch
from mmscale.arch.blocks import follows_output, repeated, rewired
from mmscale.errors import UsageError

KINDS = ('resolution', 'depth', 'width')


@dataclass(frozen=True)
class Adjustment:
    """One step of one dimension.

    Attributes:
        kind: ``resolution``, ``depth`` or ``width``.
        step: Change in pixels, blocks or channels.
        stage: Network stage, from 0; None for the resolution.
    """

    kind: str
    step: int
    stage: int | None = None

    def __str__(self) -> str:
        where = '' if self.stage is None else f' of network stage {self.stage + 1}'
        return f'{self.kind}{where} by {self.step:+d}'


def width_step(arch: Arch, stage: int, divisor: int) -> int:
    """The smallest change of a network stage's width that keeps its groups whole.

    Args:
        arch: The network.
        stage: Network stage, from 0.
        divisor: The change is a multiple of it, and that of hidden widths that follow.
    """
    step = divisor
    for block in arch.stages[stage]:
        if block.kind in ('basic', 'conv') or block.depthwise or not follows_output(block):
            continue
        part = Fraction(block.hidden_channels, block.out_channels)
        group = 1 if block.groups == 1 else block.hidden_channels // block.groups
        # Smallest width w with w * part a multiple of the group width and the divisor.
        step = math.lcm(step, (math.lcm(group, divisor) / part).numerator)
    return step


def adjust(arch: Arch, adjustment: Adjustment, channel_divisor: int = 1) -> Arch:
    """Applies one adjustment.

    Args:
        arch: The network.
        adjustment: One of :func:`single_adjustments`.
        channel_divisor: Hidden widths that change become multiples of it.

    Raises:
        ValueError: It would leave a network stage without blocks or channels, or no pixels.
    """
    if adjustment.kind == 'resolution':
        return replace(arch, resolution=arch.resolution + adjustment.step)
    index = adjustment.stage
    stages = [list(stage) for stage in arch.stages]
    stage = stages[index]
    if adjustment.kind == 'depth':
        if len(stage) + adjustment.step < 1:
            raise UsageError(f'{adjustment}: no block would be left')
        stages[index] = stage[: len(stage) + adjustment.step]
        stages[index] += [repeated(stage[-1], channel_divisor)] * adjustment.step
        return replace(arch, stages=tuple(map(tuple, stages)))
    width = stage[-1].out_channels + adjustment.step
    if width < 1:
        raise UsageError(f'{adjustment}: no channel would be left')
    stages[index] = [
        rewired(block, width if j else block.in_channels, width, channel_divisor)
        for j, block in enumerate(stage)
    ]
    if index + 1 < len(stages):
        first = stages[index + 1][0]
        stages[index + 1][0] = rewired(first, width, first.out_channels, channel_divisor)
    return replace(arch, stages=tuple(map(tuple, stages)))


def single_adjustments(
    arch: Arch, channel_divisor: int, resolution_divisor: int
) -> Iterator[Adjustment]:
    """All adjustments of one step: the resolution, then depths, then widths; up before down."""
    for sign in (1, -1):
        if arch.resolution + sign * resolution_divisor >= resolution_divisor:
            yield Adjustment('resolution', sign * resolution_divisor)
    for index, stage in enumerate(arch.stages):
        yield Adjustment('depth', 1, index)
        if len(stage) > 1:
            yield Adjustment('depth', -1, index)
    for index in range(len(arch.stages)):
        step = width_step(arch, index, channel_divisor)
        yield Adjustment('width', step, index)
        if arch.widths[index] > step:
            yield Adjustment('width', -step, index)
