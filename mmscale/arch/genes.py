"""Genes: the integers that a search moves, and what those of a network stage mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmscale.arch.arch import Block
from mmscale.arch.blocks import weights
from mmscale.arch.choices import StageChoices
from mmscale.arch.options import BlockOptions, count_sequences
from mmscale.errors import UsageError

Genes = NDArray[np.int64]


@dataclass(frozen=True)
class Genotype:
    """The integer vector that a search moves in; see :attr:`SearchSpace.genes`.

    Many genotypes may mean one base model: the genes of blocks after the depth of their network
    stage are dead. :meth:`SearchSpace.canonicalise` sets them to 0.
    """

    genes: tuple[int, ...]


@dataclass(frozen=True)
class Gene:
    """One integer of a genotype: an index into its values.

    Attributes:
        name: ``resolution``, ``stem``, ``head_channels`` or ``head_hidden_channels`` of the whole
            network; ``depth`` or ``channels`` of a network stage; else what a block is chosen by,
            see :data:`mmscale.arch.choices.AXES`.
        stage: Network stage, from 0. Those of the whole network go with the first one, that of
            the head with the last one, so that crossover takes them along.
        slot: Block of the network stage, from 0; -1 for one of the whole stage or network.
        values: What the gene chooses from.
    """

    name: str
    stage: int
    slot: int
    values: tuple[Any, ...]


def check_genes(genes: Genes, num_choices: Genes) -> Genes:
    """Genes as integers of 64 bits.

    Args:
        genes: Shape (n, genes).
        num_choices: Of every gene, shape (genes,).

    Raises:
        UsageError: They are no integers, not as many, or out of range.
    """
    genes = np.asarray(genes)
    if genes.dtype.kind not in 'iu':
        raise UsageError(f'genes of type {genes.dtype}: expected integers')
    if genes.ndim != 2 or genes.shape[1] != len(num_choices):
        raise UsageError(f'genes of shape {genes.shape}: expected (n, {len(num_choices)})')
    if ((genes < 0) | (genes >= num_choices)).any():
        row, gene = np.argwhere((genes < 0) | (genes >= num_choices))[0]
        raise UsageError(
            f'genotype {row}: gene {gene}={genes[row, gene]} must lie in '
            f'0..{num_choices[gene] - 1}'
        )
    return genes.astype(np.int64, copy=False)


class StageGenes:
    """The genes of one network stage, and the blocks that they mean.

    Args:
        choices: Of the network stage.
        first: Blocks that may be its first one.
        further: Blocks that may follow.
        before: Column of the gene for the width before the stage; None if there is one width.
        genes: Genes of the network before this stage; its own are added.
        stage: Index of the stage.
    """

    def __init__(
        self,
        choices: StageChoices,
        first: BlockOptions,
        further: BlockOptions,
        before: int | None,
        genes: list[Gene],
        stage: int,
    ) -> None:
        self.choices = choices
        self.first, self.further = first, further
        self.before = before

        def add(name: str, slot: int, values: Sequence[Any]) -> int:
            genes.append(Gene(name, stage, slot, tuple(values)))
            return len(genes) - 1

        self.depth = add('depth', -1, choices.depths)
        is_choice = len(choices.channels) > 1
        self.channels = add('channels', -1, choices.channels) if is_choice else None
        shared = [axis for axis in choices.axes if axis.shared]
        self.shared = {
            axis.name: add(axis.name, -1, axis.values) if len(axis.values) > 1 else None
            for axis in shared
        }
        # Per slot the column of every axis, None without a choice, in the order of the options.
        self.columns: list[list[int | None]] = []
        for slot in range(choices.depths[-1]):
            own: dict[str, int | None] = {}
            for axis in choices.axes_of(slot == 0):
                # A kernel has a gene also where there is one kernel: genotypes have always had it.
                is_gene = len(axis.values) > 1 or (
                    axis.name == 'kernel' and axis.values != (None,)
                )
                if not axis.shared:
                    own[axis.name] = add(axis.name, slot, axis.values) if is_gene else None
            axes = self.options(slot).axes
            self.columns.append(
                [self.shared[axis.name] if axis.shared else own[axis.name] for axis in axes]
            )

    def options(self, slot: int) -> BlockOptions:
        """Blocks that a slot may hold."""
        return self.first if slot == 0 else self.further

    def steps(self, slot: int) -> tuple[tuple[int, int], ...]:
        """Columns whose genes decide the option of a slot, with what one step of each adds."""
        sizes = self.options(slot).sizes
        return tuple(
            (column, math.prod(sizes[axis + 1 :]))
            for axis, column in enumerate(self.columns[slot])
            if column is not None
        )

    def option(self, genes: Genes, slot: int) -> Genes:
        """Options of a slot, shape (n,)."""
        found = np.zeros(len(genes), dtype=np.int64)
        for column, step in self.steps(slot):
            found += genes[:, column] * step
        return found

    def set_option(self, genes: Genes, slot: int, option: Genes | int) -> None:
        """Writes the genes that mean an option of a slot.

        Args:
            genes: Shape (..., genes); is changed.
            slot: The slot.
            option: Shape (...).
        """
        digits = np.unravel_index(option, self.options(slot).sizes)
        for column, digit in zip(self.columns[slot], digits, strict=True):
            if column is not None:
                genes[..., column] = digit

    def widths(self, genes: Genes, slot: int) -> tuple[Genes, Genes]:
        """Indexes of the widths before and after a slot, each of shape (n,)."""
        zero = np.zeros(len(genes), dtype=np.int64)
        before = zero if slot or self.before is None else genes[:, self.before]
        after = zero if self.channels is None else genes[:, self.channels]
        return before, after

    def depths(self, genes: Genes) -> Genes:
        """Number of blocks, shape (n,)."""
        return np.asarray(self.choices.depths)[genes[:, self.depth]]

    def blocks(self, row: Sequence[int]) -> tuple[Block, ...]:
        """The blocks of one genotype."""
        before = 0 if self.before is None else row[self.before]
        after = 0 if self.channels is None else row[self.channels]
        found = []
        for slot in range(self.choices.depths[row[self.depth]]):
            option = sum(row[column] * step for column, step in self.steps(slot))
            found.append(self.options(slot).block(before if slot == 0 else 0, after, option))
        return tuple(found)

    # ---------------------------------------------------------------- equal networks

    @cached_property
    def is_ambiguous(self) -> bool:
        """Whether several choices of its blocks may mean one network."""
        return self.first.is_ambiguous or (len(self.columns) > 1 and self.further.is_ambiguous)

    def canonicalise(self, genes: Genes) -> Genes:
        """Of all genotypes of the same blocks the one with the lowest shared genes, then others.

        Args:
            genes: Shape (n, genes), dead genes 0.
        """
        if not self.is_ambiguous:
            return genes
        depths = self.depths(genes)
        num_shared = self.first.shared
        # Private option of every slot under every shared choice, -1 where there is none.
        privates = np.zeros((len(genes), len(self.columns), num_shared), dtype=np.int64)
        for slot in range(len(self.columns)):
            used = slot < depths
            widths = [width[used] for width in self.widths(genes, slot)]
            option = self.option(genes, slot)[used]
            privates[used, slot] = self.options(slot).privates[(*widths, option)]
        chosen = (privates >= 0).all(axis=1).argmax(axis=1)
        genes = genes.copy()
        rows = np.arange(len(genes))
        for slot in range(len(self.columns)):
            used = slot < depths
            option = chosen * self.options(slot).private + privates[rows, slot, chosen]
            own = genes[used]
            self.set_option(own, slot, option[used])
            genes[used] = own
        return genes

    def mattering(self, genes: Genes) -> NDArray[np.bool_]:
        """Which genes of used blocks mean another network at another value, shape (n, genes)."""
        depths = self.depths(genes)
        matters = np.ones(genes.shape, dtype=bool)
        if not self.is_ambiguous:
            return matters
        shared = [column for column in self.shared.values() if column is not None]
        matters[:, shared] = False
        for slot in range(len(self.columns)):
            used = slot < depths
            found = self.options(slot).matters[
                (*self.widths(genes, slot), self.option(genes, slot))
            ]
            for axis, column in enumerate(self.columns[slot]):
                if column is None:
                    continue
                if column in shared:
                    matters[:, column] |= used & found[:, axis]
                else:
                    matters[:, column] = found[:, axis]
        return matters

    def sequences(self, before: int, after: int) -> list[int]:
        """Number of different sequences of blocks of every depth, between the widths given."""
        first = self.first.masks(before, after)
        further = self.further.masks(0, after)
        counts = count_sequences(first, further, self.choices.depths[-1])
        return [counts[depth - 1] for depth in self.choices.depths]

    @property
    def skip_shares(self) -> NDArray[np.float64]:
        """Share of every depth, if a block is skipped as likely as it is any of its choices."""
        longest = self.choices.depths[-1]
        options = len(set(self.further.ids[0, 0, : self.further.private].tolist()))
        # Logarithms, as the numbers may be larger than any float.
        ways = np.array(
            [
                math.log(math.comb(longest - 1, depth - 1)) + depth * math.log(options)
                for depth in self.choices.depths
            ]
        )
        shares = np.exp(ways - ways.max())
        return shares / shares.sum()

    def set_extreme(self, genes: Genes, largest: bool) -> None:
        """Sets the genes that mean the most or the fewest weights.

        Args:
            genes: Shape (genes,); is changed.
            largest: Whether the most.
        """
        sign = 1 if largest else -1
        end = -1 if largest else 0
        counts = []
        for options in (self.first, self.further):
            count = options.count
            blocks = options.blocks[-count:] if largest else options.blocks[:count]
            weighed = [sign * weights(block) for block in blocks]
            counts.append(np.array(weighed).reshape(options.shared, options.private))
        depth = self.choices.depths[end]
        total = counts[0].max(axis=1) + (depth - 1) * counts[1].max(axis=1)
        # Of equals the largest or the smallest choice.
        shared = _last_of(total) if largest else int(total.argmax())
        genes[self.depth] = len(self.choices.depths) - 1 if largest else 0
        if self.channels is not None:
            genes[self.channels] = len(self.choices.channels) - 1 if largest else 0
        for slot in range(len(self.columns)):
            row = counts[min(slot, 1)][shared]
            private = _last_of(row) if largest else int(row.argmax())
            self.set_option(genes, slot, shared * self.options(slot).private + private)

    def find(self, blocks: Sequence[Block], before: int, after: int, genes: Genes) -> bool:
        """Writes the genes that mean these blocks; False if none do.

        Args:
            blocks: Of the network stage.
            before: Index of the width before it.
            after: Index of its width.
            genes: Shape (genes,); is changed.
        """
        if len(blocks) not in self.choices.depths:
            return False
        genes[self.depth] = self.choices.depths.index(len(blocks))
        found = []
        for slot, block in enumerate(blocks):
            options, place = self.options(slot), (0 if slot else before, after)
            try:
                option = options.option_of(block, *place)
            except KeyError:
                return False
            found.append(options.privates_of(*place, option))
        allowed = np.flatnonzero((np.array(found) >= 0).all(axis=0))
        if not len(allowed):
            return False
        for slot, privates in enumerate(found):
            option = allowed[0] * self.options(slot).private + privates[allowed[0]]
            self.set_option(genes, slot, option)
        return True


def _last_of(values: NDArray) -> int:
    """Index of the last of the largest values."""
    return len(values) - 1 - int(values[::-1].argmax())
