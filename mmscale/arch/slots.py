"""The places of a super-supernet, and which blocks are at home in each."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from mmscale.arch.arch import Block, SqueezeExcite
from mmscale.arch.blocks import repeated
from mmscale.arch.choices import GROUPED
from mmscale.arch.genes import StageGenes
from mmscale.arch.rounding import Rounding
from mmscale.arch.scaling import WidthRule, scale_block, scaled_width


def variant_of(block: Block, known: Collection[str] = ()) -> str:
    """Name of a block's kind and grouping: blocks of one variant may share weights.

    Args:
        block: Any block.
        known: Variants of its place: a block of one group, as wide as the groups of one of them,
            is of that one.
    """
    if block.depthwise:
        return block.kind
    grouped = f'{block.kind}_g{block.grouped_widths[1] // block.groups}'
    if block.groups == 1 and not (grouped in known and block.kind in GROUPED):
        return f'{block.kind}_dense'
    return grouped


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


def make_slots(
    stage: StageGenes,
    depth: float,
    width: float,
    rule: WidthRule,
    rounding: Rounding,
    both_sides: bool,
) -> tuple[dict[str, Slot], ...]:
    """The slots of a network stage.

    Args:
        stage: Has its blocks.
        depth: Largest depth multiplier.
        width: Largest width multiplier.
        rule: Width rule of the space.
        rounding: Of its widths and depths.
        both_sides: Whether there is room for both sides of the channel coupling.

    Returns:
        Per block of the deepest network its slots by the name of the variant.
    """
    depths = stage.choices.depths
    first = list(stage.first.blocks)
    further = list(stage.further.blocks) if depths[-1] > 1 else []
    if any(rounding.depth(n, depth) > n for n in depths):
        # Blocks that repeat the last one.
        last = [*further, *(first if depths[0] == 1 else ())]
        further += dict.fromkeys(map(repeated, last))

    def slots(blocks: list[Block]) -> dict[str, Slot]:
        # At their smallest and at their largest widths.
        scaled = [
            scale_block(
                block,
                multiplier,
                scaled_width(block.in_channels, multiplier, rounding),
                rule,
                rounding,
            )
            for multiplier in dict.fromkeys((1.0, width))
            for block in blocks
        ]
        # Those between have the same groups.
        known = {variant_of(block) for block in scaled}
        variants: dict[str, list[Block]] = {}
        for block in scaled:
            variants.setdefault(variant_of(block, known), []).append(block)
        # Variants of one place lie between the same widths.
        outer = {
            key: allocate((getattr(block, key) for block in scaled), both_sides)
            for key in ('in_channels', 'out_channels')
        }
        return {name: _make_slot(own, outer, both_sides) for name, own in variants.items()}

    count = rounding.depth(depths[-1], depth)
    places = [slots(first)]
    return (*places, *([slots(further)] * (count - 1) if count > 1 else ()))


def _make_slot(blocks: list[Block], outer: dict[str, int], both_sides: bool) -> Slot:
    """The slot of some blocks of one variant, between the widths given."""
    # That of a block with more than one group, if there is one.
    first = max(blocks, key=lambda block: block.groups > 1)
    hidden = allocate([block.hidden_channels for block in blocks], both_sides)
    if first.kind in ('dsconv', 'conv'):
        hidden = outer['in_channels' if first.kind == 'dsconv' else 'out_channels']
    widths = {**outer, 'hidden_channels': hidden}
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
