"""From a scaled Arch back to the base model and the scaling that make it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from mmscale.arch import Arch, Block, Genotype, Scaling, SearchSpace
from mmscale.arch.blocks import repeated
from mmscale.arch.genes import StageGenes
from mmscale.arch.scaling import scale_block, scaled_width


def unscale(
    space: SearchSpace, arch: Arch, scalings: Iterable[Scaling]
) -> tuple[Genotype, Scaling] | None:
    """A base model and a scaling that make an Arch: the first found, as several may.

    Args:
        space: The search space.
        arch: The scaled network.
        scalings: The scalings that may have made it.

    Returns:
        The canonical base model and the scaling; None if none is found.
    """
    for scaling in scalings:
        genes = _base_genes(space, arch, scaling)
        if genes is not None and space.decode(genes, scaling) == arch:
            return space.genotype(genes), scaling
    return None


def _base_genes(space: SearchSpace, arch: Arch, scaling: Scaling) -> np.ndarray | None:
    """Genes of a base model that may be scaled to an Arch, shape (genes,)."""
    rounding, choices = space.rounding, space.ends.choices
    if len(arch.stages) != len(space.stages):
        return None
    scaled = {
        'resolution': lambda value: rounding.resolution(value, scaling.resolution),
        'stem': lambda value: scaled_width(value, scaling.width, rounding),
    }
    wanted = {
        'resolution': arch.resolution,
        'stem': arch.stem.out_channels,
        'head_channels': arch.head.channels,
        'head_hidden_channels': arch.head.hidden_channels,
    }
    genes = np.zeros(space.num_genes, dtype=np.int64)
    before = 0
    for name, value in wanted.items():
        made = [scaled.get(name, int)(own) for own in choices[name]]
        if value not in made:
            return None
        if space.ends.columns[name] is not None:
            genes[space.ends.columns[name]] = made.index(value)
        if name == 'stem':
            before = made.index(value)
    channels = arch.stem.out_channels
    for stage, blocks in zip(space.stage_genes, arch.stages, strict=True):
        widths = [scaled_width(own, scaling.width, rounding) for own in stage.choices.channels]
        if blocks[-1].out_channels not in widths:
            return None
        after = widths.index(blocks[-1].out_channels)
        if stage.channels is not None:
            genes[stage.channels] = after
        if not _find_stage(space, stage, blocks, (before, after), channels, scaling, genes):
            return None
        before, channels = after, blocks[-1].out_channels
    return genes


def _find_stage(
    space: SearchSpace,
    stage: StageGenes,
    blocks: Sequence[Block],
    place: tuple[int, int],
    channels: int,
    scaling: Scaling,
    genes: np.ndarray,
) -> bool:
    """Writes the genes of a network stage that is scaled to some blocks; False if none is."""

    def scaled(block: Block, width: int) -> Block:
        return scale_block(block, scaling.width, width, space.width_rule, space.rounding)

    before, after = place
    for depth in stage.choices.depths:
        if depth > len(blocks) or space.rounding.depth(depth, scaling.depth) != len(blocks):
            continue
        base: list[Block] = []
        for slot, wanted in enumerate(blocks[:depth]):
            options, width = stage.options(slot), channels if slot == 0 else wanted.in_channels
            own = [options.block(0 if slot else before, after, i) for i in range(options.count)]
            base += [block for block in own if scaled(block, width) == wanted][:1]
        if len(base) < depth:
            continue
        follows = [scaled(repeated(base[-1]), block.in_channels) for block in blocks[depth:]]
        if follows == list(blocks[depth:]) and stage.find(base, before, after, genes):
            return True
    return False
