"""Closed-form cost of an Arch: multiply-adds, parameters and activations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from mmscale.arch.arch import Arch, Block, Head, Stem
from mmscale.arch.blocks import convolutions
from mmscale.arch.checks import choice
from mmscale.arch.presets import get_arch
from mmscale.tables import Printed, make_table

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

CONVENTIONS = ('mmscale', 'pycls')


@dataclass(frozen=True)
class Cost(Printed):
    """Cost of a network for one image; printed, it is a table.

    Attributes:
        flops: Multiply-adds of convolutions and linear layers.
        params: Trainable numbers: weights, biases, affine BN parameters.
        acts: Elements that convolutions and linear layers output.
    """

    flops: int = 0
    params: int = 0
    acts: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.params + other.params, self.acts + other.acts)

    def renderables(self) -> list[Table]:
        """The three numbers in a row."""
        names = ('flops', 'params', 'acts')
        return [make_table(None, names, [[f'{getattr(self, name):,}' for name in names]])]


def output_size(size: int, stride: int) -> int:
    """Side of the output of an odd kernel, ``half`` or ``same`` padding: ceil(size / stride)."""
    return (size - 1) // stride + 1


def _conv(
    in_channels: int,
    out_channels: int,
    kernel: int,
    size: int,
    groups: int = 1,
    bias: int = 0,
    norm: bool = True,
    bias_flops: bool = False,
) -> Cost:
    weights = kernel * kernel * in_channels * out_channels // groups
    area = size * size
    return Cost(
        flops=weights * area + (out_channels * area if bias and bias_flops else 0),
        params=weights + out_channels * (bias + (2 if norm else 0)),
        acts=out_channels * area,
    )


def _linear(in_channels: int, out_channels: int, bias_flops: bool) -> Cost:
    return _conv(in_channels, out_channels, 1, 1, bias=1, norm=False, bias_flops=bias_flops)


def stem_cost(stem: Stem, size: int, convention: str) -> tuple[Cost, int]:
    """Cost of the stem on a `size` x `size` input, and the side of its output."""
    size = output_size(size, stem.stride)
    cost = _conv(stem.in_channels, stem.out_channels, stem.kernel, size)
    if stem.max_pool:
        size = output_size(size, 2)
        if convention == 'pycls':
            cost += Cost(acts=stem.out_channels * size * size)
    return cost, size


@lru_cache(maxsize=1 << 16)
def block_cost(block: Block, size: int, convention: str) -> tuple[Cost, int]:
    """Cost of a block on a `size` x `size` input, and the side of its output."""
    out_size = output_size(size, block.stride)
    cost = Cost()
    for conv in convolutions(block):
        side = out_size if conv.strided else size
        cost += _conv(conv.in_channels, conv.out_channels, conv.kernel, side, conv.groups)
    if block.se is not None:
        biased = convention == 'pycls'
        gated = block.grouped_widths[1]
        cost += _linear(gated, block.se.channels, biased)
        cost += _linear(block.se.channels, gated, biased)
    return cost, out_size


def head_cost(head: Head, in_channels: int, size: int, convention: str) -> Cost:
    """Cost of the head after a feature map of `in_channels` x `size` x `size`."""
    cost = Cost()
    biased = convention == 'pycls'
    channels = in_channels
    if head.channels:
        cost += _conv(channels, head.channels, 1, size)
        channels = head.channels
    for width in (head.hidden_channels, head.num_classes):
        if width:
            cost += _linear(channels, width, biased)
            channels = width
    return cost


def check_convention(convention: str) -> None:
    """Raises ValueError for an unknown counting convention."""
    choice('convention', convention, CONVENTIONS)


@dataclass(frozen=True)
class PartCost:
    """Cost of the stem, of a network stage or of the head.

    Attributes:
        name: ``stem``, ``stage 1`` ... or ``head``.
        blocks: Number of blocks, 0 for stem and head.
        channels: Output width.
        size: Side of the output, in pixels.
        cost: The part's cost.
    """

    name: str
    blocks: int
    channels: int
    size: int
    cost: Cost


def count_parts(
    arch: str | Path | dict | Arch, convention: str = 'mmscale'
) -> tuple[PartCost, ...]:
    """Counts the stem, every network stage and the head of an Arch; see :func:`count`.

    Raises:
        ValueError: There is no such Arch, or the convention is unknown.
    """
    check_convention(convention)
    arch = get_arch(arch)
    cost, size = stem_cost(arch.stem, arch.resolution, convention)
    parts = [PartCost('stem', 0, arch.stem.out_channels, size, cost)]
    for i, stage in enumerate(arch.stages):
        flops = params = acts = 0
        for block in stage:
            cost, size = block_cost(block, size, convention)
            flops += cost.flops
            params += cost.params
            acts += cost.acts
        width = stage[-1].out_channels
        parts.append(
            PartCost(f'stage {i + 1}', len(stage), width, size, Cost(flops, params, acts))
        )
    cost = head_cost(arch.head, arch.widths[-1], size, convention)
    channels = arch.head.num_classes or arch.head.hidden_channels or arch.feature_channels
    linear = arch.head.num_classes or arch.head.hidden_channels
    parts.append(PartCost('head', 0, channels, 1 if linear else size, cost))
    return tuple(parts)


def count(arch: str | Path | dict | Arch, convention: str = 'mmscale') -> Cost:
    """Counts an Arch at its resolution, exactly, without building it.

    Args:
        arch: The network, as :func:`mmscale.arch.get_arch` finds it.
        convention: ``mmscale`` counts multiply-adds of convolutions and linear layers alone;
            ``pycls``, which :func:`mmscale.scale` reports by default, adds bias additions to
            flops and max-pool outputs to acts.

    Raises:
        ValueError: There is no such Arch, or the convention is unknown.

    Example:
        >>> count('scalenet-s1').flops
        800296060
    """
    return sum((part.cost for part in count_parts(arch, convention)), Cost())
