"""Which scalings of a scaling stage differ: many multipliers round to the same networks."""

from __future__ import annotations

from collections.abc import Sequence

from mmscale.arch import Block, Scaling, SearchSpace
from mmscale.arch.blocks import repeated
from mmscale.arch.scaling import scale_block, scaled_width


def distinct_scalings(space: SearchSpace, scaling_stage: int) -> tuple[Scaling, ...]:
    """Scalings of a scaling stage that differ for some base model.

    Many nominal depth and width multipliers round to the same networks; the first of them in the
    order of the config stands for all.
    """
    widths: dict[float, _Widths] = {}
    bases = space.ends.choices['resolution']
    representatives: dict[object, Scaling] = {}
    for scaling in space.scalings(scaling_stage):
        if scaling.width not in widths:
            widths[scaling.width] = _Widths(space, scaling.width)
        pixels = tuple(space.rounding.resolution(base, scaling.resolution) for base in bases)
        depths = [
            tuple(space.rounding.depth(depth, scaling.depth) for depth in stage.depths)
            for stage in space.stages
        ]
        key = pixels, tuple(depths), widths[scaling.width].key(depths)
        representatives.setdefault(key, scaling)
    return tuple(representatives.values())


class _Widths:
    """All widths that a multiplier makes of a space's blocks.

    Two multipliers make the same networks of all base models just where they make the same of
    every block that a base model may have.
    """

    def __init__(self, space: SearchSpace, multiplier: float) -> None:
        self._space = space
        self._multiplier = multiplier
        self._stem = tuple(self._width(channels) for channels in space.ends.choices['stem'])
        # Per network stage, for first blocks, further ones, and those that follow either.
        self._scaled: dict[tuple[int, bool, bool], tuple] = {}

    def _width(self, channels: int) -> int:
        return scaled_width(channels, self._multiplier, self._space.rounding)

    def _blocks(self, stage: int, first: bool, follow: bool) -> tuple:
        """Widths of the blocks of a network stage, or of what repeats them."""
        key = stage, first, follow
        if key not in self._scaled:
            space = self._space
            own = space.stage_genes[stage]
            # Kernels and activations do not matter to widths.
            blocks = {_widths(b): b for b in (own.first if first else own.further).blocks}
            if follow:
                following = map(repeated, blocks.values())
                blocks = {_widths(block): block for block in following}
            self._scaled[key] = tuple(
                _widths(
                    scale_block(
                        block,
                        self._multiplier,
                        self._width(block.in_channels),
                        space.width_rule,
                        space.rounding,
                    )
                )
                for block in blocks.values()
            )
        return self._scaled[key]

    def key(self, depths: Sequence[Sequence[int]]) -> tuple:
        """Equal for multipliers that make the same networks.

        Args:
            depths: Scaled depths of every network stage.
        """
        key: list[tuple] = [self._stem]
        for i, (stage, scaled) in enumerate(zip(self._space.stages, depths, strict=True)):
            pairs = list(zip(stage.depths, scaled, strict=True))
            key.append(self._blocks(i, first=True, follow=False))
            if any(min(pair) > 1 for pair in pairs):
                key.append(self._blocks(i, first=False, follow=False))
            for first in (True, False):
                if any((base == 1) == first and more > base for base, more in pairs):
                    key.append(self._blocks(i, first, follow=True))
        return tuple(key)


def _widths(block: Block) -> tuple:
    """What of a block matters to its scaling, and what scaling changes."""
    return (
        *(block.kind, block.residual, block.in_channels, block.hidden_channels),
        *(block.out_channels, block.groups, block.se and block.se.channels),
    )
