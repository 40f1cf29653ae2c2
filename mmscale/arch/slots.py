"""The places of a super-supernet, and which blocks are at home in each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from mmscale.arch.arch import Block, SqueezeExcite


def variant_of(block: Block) -> str:
    """Name of a block's kind and grouping: blocks of one variant may share weights."""
    if block.depthwise:
        return block.kind
    if block.groups == 1:
        return f'{block.kind}_dense'
    return f'{block.kind}_g{block.grouped_widths[1] // block.groups}'


@dataclass(frozen=True)
class Slot:
    """A place of a super-supernet for blocks of one variant.

    Attributes:
        block: Every dimension as large as is allocated, with SE and a projection if any block of
            the slot has them.
        kernels: Sizes that a block may have, ascending.
        forms: What else a block may be: activation, residual, SE's activations (or None).
    """

    block: Block
    kernels: tuple[int, ...]
    forms: frozenset[tuple[str, str, tuple[str, str] | None]]

    def admits(self, block: Block) -> bool:
        """Whether a block of this variant is at home here: no wider, of one of the forms."""
        own = self.block
        pairs = [
            (block.in_channels, own.in_channels),
            (block.hidden_channels, own.hidden_channels),
            (block.out_channels, own.out_channels),
        ]
        if block.se is not None and own.se is not None:
            pairs.append((block.se.channels, own.se.channels))
        settings = ('kind', 'stride', 'padding', 'eps', 'grouped_channels')
        return (
            block.kernel in self.kernels
            and _form(block) in self.forms
            and all(width <= most for width, most in pairs)
            and all(getattr(block, key) == getattr(own, key) for key in settings)
        )


def _form(block: Block) -> tuple[str, str, tuple[str, str] | None]:
    return block.act, block.residual, block.se and (block.se.act, block.se.gate)


def allocate(sizes: Iterable[int], both_sides: bool) -> int:
    """Channels that hold every size: the largest, and for both sides the smallest beside it.

    Left slices are the first channels of a dimension and right slices the last, so both fit at
    every width, and every channel is covered equally often under uniform widths (ScaleNet's
    left/right coupling). Dimensions that never change are allocated once.
    """
    sizes = list(sizes)
    low, high = min(sizes), max(sizes)
    return low + high if both_sides and low != high else high


def make_slots(blocks: Iterable[Block], both_sides: bool) -> dict[str, Slot]:
    """The slots of one place.

    Args:
        blocks: All blocks that it may hold, at their smallest and at their largest widths.
        both_sides: Whether they lie on both sides of the channel coupling.

    Returns:
        By the name of the variant, in the order of the blocks.
    """
    variants: dict[str, list[Block]] = {}
    for block in blocks:
        variants.setdefault(variant_of(block), []).append(block)
    return {name: _make_slot(own, both_sides) for name, own in variants.items()}


def _make_slot(blocks: list[Block], both_sides: bool) -> Slot:
    first = blocks[0]
    widths = {
        key: allocate([getattr(block, key) for block in blocks], both_sides)
        for key in ('in_channels', 'hidden_channels', 'out_channels')
    }
    excites = [block.se for block in blocks if block.se is not None]
    se = None
    if excites:
        squeezed = allocate([part.channels for part in excites], both_sides)
        se = SqueezeExcite(squeezed, excites[0].act, excites[0].gate)
    residuals = {block.residual for block in blocks}
    residual = 'none'
    if 'projection' in residuals:
        residual = 'projection'
    elif residuals == {'identity'}:
        residual = 'identity'
    groups = first.groups
    if first.depthwise:
        groups = widths['hidden_channels']
    elif groups != 1:
        groups = widths['hidden_channels'] * groups // first.grouped_widths[1]
    kernels = tuple(sorted({block.kernel for block in blocks}))
    whole = replace(first, kernel=kernels[-1], groups=groups, se=se, residual=residual, **widths)
    return Slot(whole, kernels, frozenset(map(_form, blocks)))
