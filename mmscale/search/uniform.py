"""Base models of a space, drawn each equally likely."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mmscale.arch import SearchSpace
from mmscale.arch.genes import Genes, StageGenes
from mmscale.arch.options import BlockOptions

Integers = NDArray[np.int64]


def sample_base_models(space: SearchSpace, rng: np.random.Generator, size: int) -> Genes:
    """Draws base models, each equally likely.

    :meth:`SearchSpace.sample` draws each depth equally often instead, and each choice of a block
    also where several mean the same block.

    Args:
        space: The search space.
        rng: Source of randomness.
        size: Number of base models.

    Returns:
        Canonical genotypes, shape (size, genes).
    """
    genes = rng.integers(0, space.num_choices, (size, space.num_genes))
    # Networks of every network stage, by the indexes of both widths and of the depth.
    counts = [
        [
            [stage.sequences(before, after) for after in range(stage.first.shape[1])]
            for before in range(stage.first.shape[0])
        ]
        for stage in space.stage_genes
    ]
    widths = _draw_widths(counts, rng, size)
    columns = [stage.channels for stage in space.stage_genes]
    for column, own in zip((space.ends.columns['stem'], *columns), widths, strict=True):
        if column is not None:
            genes[:, column] = own
    for stage, own, (before, after) in zip(
        space.stage_genes, counts, pairwise(widths), strict=True
    ):
        genes[:, stage.depth] = _draw(own, (before, after), rng)
        if stage.is_ambiguous:
            _draw_blocks(stage, genes, rng)
    return space.canonicalise(genes)


def _draw_widths(
    counts: Sequence[Sequence[Sequence[Sequence[int]]]], rng: np.random.Generator, size: int
) -> list[Integers]:
    """Widths of stem and network stages by the number of networks that have them, as indexes."""
    # Networks up to every network stage, by the indexes of both its widths.
    totals: list[list[list[int]]] = []
    reached = [1] * len(counts[0])
    for own in counts:
        rows = zip(reached, own, strict=True)
        totals.append([[number * sum(depths) for depths in row] for number, row in rows])
        reached = [sum(column) for column in zip(*totals[-1], strict=True)]
    last = np.zeros(size, dtype=np.int64)
    if len(reached) > 1:
        last = _draw(reached, (), rng, size)
    widths = [last]
    for total in reversed(totals):
        before = np.zeros(size, dtype=np.int64)
        if len(total) > 1:
            before = _draw(list(zip(*total, strict=True)), (widths[0],), rng)
        widths.insert(0, before)
    return widths


def _draw(
    counts: Sequence, places: Sequence[Integers], rng: np.random.Generator, size: int = 0
) -> Integers:
    """Draws an index of the innermost lists of numbers, as likely as its number says.

    Args:
        counts: Nested lists of integers, as deep as there are `places` and one more.
        places: Indexes of the other lists, each of shape (n,).
        rng: Source of randomness.
        size: Number of draws, where there are no places.
    """
    shares = _shares(counts).cumsum(axis=-1)
    shares /= shares[..., -1:]
    lots = rng.random(len(places[0]) if places else size)
    own = shares[tuple(places)] if places else shares
    return (own <= lots[:, None]).sum(axis=1)


def _shares(counts: Sequence) -> NDArray[np.float64]:
    """Shares of the innermost lists: integers may be larger than any float."""
    if isinstance(counts[0], int):
        total = sum(counts)
        return np.array([number / total for number in counts])
    return np.array([_shares(part) for part in counts])


def _draw_blocks(stage: StageGenes, genes: Genes, rng: np.random.Generator) -> None:
    """Draws the blocks of a network stage, each sequence of different ones equally likely.

    A shared choice is drawn by the number of sequences that it allows, then one of these. One
    that other shared choices allow too would come too often: of k such it is kept in one of k
    cases, else drawn anew.

    Args:
        stage: The network stage.
        genes: Shape (n, genes), with widths and depth; those of the blocks are changed.
        rng: Source of randomness.
    """
    first, further = _Different(stage.first), _Different(stage.further)
    left = np.arange(len(genes))
    while len(left):
        rows = genes[left]
        before, after = stage.widths(rows, 0)
        depths = stage.depths(rows)
        logs = np.log(first.counts[before, after])
        logs = logs + (depths[:, None] - 1) * np.log(further.counts[0, after])
        shares = np.exp(logs - logs.max(axis=1, keepdims=True)).cumsum(axis=1)
        lots = rng.random(len(left)) * shares[:, -1]
        shared = (shares <= lots[:, None]).sum(axis=1)
        allowed = np.ones(shares.shape, dtype=bool)
        for slot in range(len(stage.columns)):
            different, options = (further if slot else first), stage.options(slot)
            place = tuple(stage.widths(rows, slot))
            lots = rng.random(len(left)) * different.counts[(*place, shared)]
            private = different.privates[(*place, shared, lots.astype(np.int64))]
            option = shared * options.private + private
            stage.set_option(rows, slot, option)
            allowed &= (options.privates[(*place, option)] >= 0) | (slot >= depths)[:, None]
        kept = rng.random(len(left)) * allowed.sum(axis=1) < 1
        genes[left[kept]] = rows[kept]
        left = left[~kept]


class _Different:
    """The different blocks of a place under every shared choice.

    Attributes:
        counts: How many, shape (input widths, widths, shared choices).
        privates: A private option of each, shape (input widths, widths, shared choices, the most
            different blocks).
    """

    def __init__(self, options: BlockOptions) -> None:
        ids = options.ids.reshape(*options.shape[:2], options.shared, options.private)
        self.counts = np.empty(ids.shape[:3], dtype=np.int64)
        self.privates = np.zeros(ids.shape, dtype=np.int64)
        for place in np.ndindex(ids.shape[:3]):
            different = np.unique(ids[place], return_index=True)[1]
            self.counts[place] = len(different)
            self.privates[place][: len(different)] = different
