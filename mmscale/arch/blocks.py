"""Blocks taken apart, and between other widths: the algebra that counting and scaling share."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from mmscale.arch.arch import Block


@dataclass(frozen=True)
class Convolution:
    """A convolution of a block.

    Attributes:
        in_channels: Input width.
        out_channels: Output width.
        kernel: Size of the kernel.
        groups: Number of groups.
        strided: Whether its output has the size of the block's output, not of the input.
    """

    in_channels: int
    out_channels: int
    kernel: int = 1
    groups: int = 1
    strided: bool = True

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.kernel**2 * self.in_channels * self.out_channels // self.groups


def convolutions(block: Block) -> tuple[Convolution, ...]:
    """All convolutions of a block, in their order; that of a projected shortcut comes last."""
    grouped_in, grouped_out = block.grouped_widths
    found = []
    if block.kind in ('mbconv', 'bottleneck'):
        found.append(Convolution(block.in_channels, grouped_in, strided=False))
    found.append(Convolution(grouped_in, grouped_out, block.kernel, block.groups))
    if block.kind != 'conv':
        last_kernel = block.kernel if block.kind == 'basic' else 1
        found.append(Convolution(grouped_out, block.out_channels, last_kernel))
    if block.residual == 'projection':
        found.append(Convolution(block.in_channels, block.out_channels))
    return tuple(found)


def weights(block: Block) -> int:
    """Number of weights of a block's convolutions and of its SE's linear layers."""
    gates = 0 if block.se is None else 2 * block.grouped_widths[1] * block.se.channels
    return gates + sum(convolution.weights for convolution in convolutions(block))


def conv_groups(block: Block, in_channels: int, out_channels: int) -> int:
    """Groups of a conv between other widths: as many as it has, as far as they divide both."""
    wanted = in_channels if block.depthwise else block.groups
    return math.gcd(wanted, in_channels, out_channels)


def expanded(inner: int, before: int, after: int) -> int:
    """An inner width of a block as one of its outer widths changes, rounded up."""
    return max(1, math.ceil(inner * Fraction(after, before)))


def nearest(numerator: int, denominator: int, divisor: int = 1) -> int:
    """The multiple of `divisor` nearest to a fraction, at least one."""
    return max(1, round(numerator / (denominator * divisor))) * divisor


def chosen_without_residual(block: Block) -> bool:
    """Whether a block could have a residual connection and has none: a choice of the network."""
    return (
        block.residual == 'none' and block.stride == 1 and block.in_channels == block.out_channels
    )


def residual_between(block: Block, stride: int, in_channels: int, out_channels: int) -> str:
    """The residual that a block has between other widths, if it has one."""
    if stride == 1 and in_channels == out_channels:
        return 'identity'
    if block.residual == 'projection' or block.kind in ('bottleneck', 'basic'):
        return 'projection'
    return 'none'


def follows_output(block: Block) -> bool:
    """Whether hidden channels belong to the output (ResNet, RegNet), not to the input."""
    return block.kind in ('bottleneck', 'basic', 'conv') or (
        block.kind == 'mbconv' and block.groups != 1 and not block.depthwise
    )


# Most blocks of a deep network stage are equal.
@lru_cache(maxsize=4096)
def rewired(block: Block, in_channels: int, out_channels: int, divisor: int = 1) -> Block:
    """The block between other widths: equal expansion, equal channels per group.

    A hidden width that does not divide into groups becomes a multiple of `divisor`; the widths
    given have to be such that another one does. A conv keeps the number of its groups instead.
    """
    if (in_channels, out_channels) == (block.in_channels, block.out_channels):
        return block
    change = (block.in_channels, in_channels)
    if follows_output(block):
        change = (block.out_channels, out_channels)
    hidden = expanded(block.hidden_channels, *change)
    if divisor > 1 and (block.groups == 1 or block.depthwise):
        hidden = nearest(block.hidden_channels * change[1], change[0], divisor)
    grouped = block.grouped_channels and expanded(block.grouped_channels, *change)
    groups = block.groups
    if block.kind == 'conv':
        hidden, groups = out_channels, conv_groups(block, in_channels, out_channels)
    elif block.depthwise:
        groups = hidden
    elif groups != 1:
        groups = hidden // (block.hidden_channels // groups)
    se = block.se
    if se is not None:
        squeezed = round(se.channels * Fraction(in_channels, block.in_channels))
        se = replace(se, channels=max(1, squeezed))
    return replace(
        block,
        in_channels=in_channels,
        hidden_channels=hidden,
        out_channels=out_channels,
        groups=groups,
        se=se,
        residual='none'
        if chosen_without_residual(block)
        else residual_between(block, block.stride, in_channels, out_channels),
        grouped_channels=grouped,
    )


@lru_cache(maxsize=2**12)
def repeated(block: Block, divisor: int = 1) -> Block:
    """The block that may follow `block` in its network stage: equal kernel and expansion."""
    if block.residual == 'identity':
        return block
    widths = (block.out_channels, block.out_channels)
    following = rewired(replace(block, stride=1), *widths, divisor)
    return replace(following, residual='identity')
