"""Cost of whole populations of a search space by NumPy indexing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmscale.arch.arch import Arch, Block
from mmscale.arch.blocks import repeated
from mmscale.arch.checks import choice
from mmscale.arch.genes import Genes, StageGenes
from mmscale.arch.options import BlockOptions
from mmscale.arch.rounding import Scaling
from mmscale.arch.scaling import scale_block, scaled_width
from mmscale.arch.space import SearchSpace
from mmscale.cost.count import (
    Cost,
    block_cost,
    check_convention,
    count_parts,
    head_cost,
    output_size,
    stem_cost,
)

# Entries of a table that several blocks share: it should stay in the processor's cache.
_MOST_ENTRIES = 2**14
# Rows of a population that are indexed at once, for the same reason.
_ROWS = 2**12

Integers = NDArray[np.int64]


class Costs(NamedTuple):
    """Costs of a population, each of shape (n,), int64; see :class:`mmscale.cost.Cost`."""

    flops: NDArray[np.int64]
    params: NDArray[np.int64]
    acts: NDArray[np.int64]


class _StageCosts(NamedTuple):
    """Costs of a network stage's first block, of one that repeats it, and of any further one.

    Each of shape (resolutions, input widths, widths, options, 3).
    """

    first: Integers
    repeated: Integers
    further: Integers


class _Part(NamedTuple):
    """A part of the cost that some genes decide together.

    Attributes:
        steps: What each gene adds to the index, by its column.
        table: Costs, shape (entries, 3).
    """

    steps: Mapping[int, int]
    table: Integers


class _Tables(NamedTuple):
    """Costs of a space under one scaling.

    Attributes:
        parts: They add up to the cost.
        steps: Of all parts, shape (parts, genes), as floats: a product of them is fast, and exact.
    """

    parts: list[_Part]
    steps: NDArray[np.float64]


def _triple(cost: Cost) -> tuple[int, int, int]:
    return cost.flops, cost.params, cost.acts


class CostTable:
    """Costs of every Arch of a space, exact to the last unit.

    What a block costs is decided by its own genes, the widths around it and the resolution, as
    odd kernels keep the spatial size; how often its network stage's last block is repeated, by
    the depth. Blocks are those that the space makes, so the table has no shape rules of its own.

    Args:
        space: The search space.
        convention: See :func:`mmscale.cost.count`.
        after_stages: Cost of what follows the network stages, where that is not the Arch's own
            head but, say, a detector's neck and head. It depends on widths and resolution alone.

    Raises:
        ValueError: The convention is unknown.
    """

    def __init__(
        self,
        space: SearchSpace,
        convention: str = 'mmscale',
        after_stages: Callable[[Arch], Cost] | None = None,
    ) -> None:
        check_convention(convention)
        self._after_stages = after_stages
        self.space = space
        self.convention = convention
        self._tables: dict[Scaling, _Tables] = {}
        self._after: dict[tuple[Scaling, bytes], tuple[int, int, int]] = {}
        # The genes that decide what follows the network stages, where that is not the own head.
        outer = ('resolution', 'stem', 'channels', 'head_channels')
        self._outer = [i for i, gene in enumerate(space.genes) if gene.name in outer]

    # ---------------------------------------------------------------- costs of a scaling

    def _stem_costs(self, scaling: Scaling) -> tuple[Integers, list[int]]:
        """Costs of the stem, shape (resolutions, widths, 3), and the sizes of its output."""
        space = self.space
        costs, sizes = [], []
        for resolution in space.ends.choices['resolution']:
            pixels = space.rounding.resolution(resolution, scaling.resolution)
            stems = space.ends.stems(scaling.width, space.rounding)
            found = [stem_cost(stem, pixels, self.convention) for stem in stems]
            costs.append([_triple(cost) for cost, _ in found])
            sizes.append(found[0][1])
        return np.array(costs, dtype=np.int64), sizes

    def _block_costs(
        self,
        options: BlockOptions,
        scaling: Scaling,
        sizes: Sequence[int],
        change: Callable[[Block], Block] | None = None,
    ) -> Integers:
        """Costs of all blocks of a place, see :class:`_StageCosts`."""
        space = self.space
        costs = np.empty((len(sizes), len(options.blocks), 3), dtype=np.int64)
        for i, block in enumerate(options.blocks):
            base = block if change is None else change(block)
            width = scaled_width(base.in_channels, scaling.width, space.rounding)
            scaled = scale_block(base, scaling.width, width, space.width_rule, space.rounding)
            for j, size in enumerate(sizes):
                costs[j, i] = _triple(block_cost(scaled, size, self.convention)[0])
        return costs.reshape(len(sizes), *options.shape, 3)

    def _head_costs(self, scaling: Scaling, sizes: Sequence[int]) -> Integers:
        """Costs of the own head, shape (resolutions, widths before, heads, 3)."""
        space = self.space
        if self._after_stages is not None:
            return np.zeros((len(sizes), len(space.stages[-1].channels), 1, 3), dtype=np.int64)
        before = [
            scaled_width(channels, scaling.width, space.rounding)
            for channels in space.stages[-1].channels
        ]
        heads = list(space.ends.heads())
        costs = [
            _triple(head_cost(head, width, size, self.convention))
            for size, width, head in itertools.product(sizes, before, heads)
        ]
        return np.array(costs, dtype=np.int64).reshape(len(sizes), len(before), len(heads), 3)

    def _all_costs(self, scaling: Scaling) -> tuple[Integers, list[_StageCosts], Integers]:
        """Costs of the stem, of the blocks of every network stage and of the head."""
        stem, sizes = self._stem_costs(scaling)
        stages = []
        for stage in self.space.stage_genes:
            after = [output_size(size, stage.choices.stride) for size in sizes]
            first = self._block_costs(stage.first, scaling, sizes)
            again = first
            if self._counts(stage, scaling)[1].any():
                again = self._block_costs(stage.first, scaling, after, repeated)
            # That a further block is repeated changes nothing of its cost.
            further = self._block_costs(stage.further, scaling, after)
            stages.append(_StageCosts(first, again, further))
            sizes = after
        return stem, stages, self._head_costs(scaling, sizes)

    def _counts(self, stage: StageGenes, scaling: Scaling) -> tuple[Integers, Integers]:
        """Per depth: base blocks that are used, and how often the last one is repeated."""
        depths = np.array(stage.choices.depths)
        scaled = np.array([self.space.rounding.depth(n, scaling.depth) for n in depths.tolist()])
        return np.minimum(depths, scaled), np.maximum(scaled - depths, 0)

    # ---------------------------------------------------------------- parts

    def _part(self, columns: Sequence[int | None], costs: Integers) -> _Part:
        """A part whose index has a dimension a column, those of one value without."""
        kept = [column for column in columns if column is not None]
        costs = costs.reshape(*(len(self.space.genes[column].values) for column in kept), 3)
        for axis in reversed(range(len(kept))):
            # What changes no cost, as an activation, makes no larger table.
            if (costs == costs.take([0], axis)).all():
                costs = costs.take(0, axis)
                del kept[axis]
        sizes = costs.shape[:-1]
        steps = {c: math.prod(sizes[axis + 1 :]) for axis, c in enumerate(kept)}
        return _Part(steps, costs.reshape(-1, 3))

    def _stage_parts(self, stage: StageGenes, costs: _StageCosts, scaling: Scaling) -> list[_Part]:
        """Parts of a network stage: as many blocks together as a small table can hold."""
        resolution = self.space.ends.columns['resolution']
        common = {resolution, stage.channels, stage.depth, *stage.shared.values()}
        parts: list[_Part] = []
        group: list[int] = []
        columns: set[int | None] = set()
        for slot, own in enumerate(stage.columns):
            needed = common | set(own) | ({stage.before} if slot == 0 else set())
            if group and self._entries(columns | needed) > _MOST_ENTRIES:
                parts.append(self._slots_part(stage, costs, scaling, group, columns))
                group, columns = [], set()
            group, columns = [*group, slot], columns | needed
        parts.append(self._slots_part(stage, costs, scaling, group, columns))
        return parts

    def _entries(self, columns: set[int | None]) -> int:
        genes = self.space.genes
        found = 1
        for column in columns:
            found *= 1 if column is None else len(genes[column].values)
        return found

    def _slots_part(
        self,
        stage: StageGenes,
        costs: _StageCosts,
        scaling: Scaling,
        slots: Sequence[int],
        columns: set[int | None],
    ) -> _Part:
        """The part of some blocks of a network stage."""
        kept = sorted(column for column in columns if column is not None)
        sizes = [len(self.space.genes[column].values) for column in kept]
        entries = np.arange(self._entries(columns))
        digits = dict(zip(kept, np.unravel_index(entries, sizes), strict=True))
        zero = np.zeros(len(entries), dtype=np.int64)

        def digit(column: int | None) -> Integers:
            return zero if column is None else digits[column]

        used, again = (count[digit(stage.depth)] for count in self._counts(stage, scaling))
        depth = np.array(stage.choices.depths)[digit(stage.depth)]
        resolution = digit(self.space.ends.columns['resolution'])
        total = np.zeros((len(entries), 3), dtype=np.int64)
        for slot in slots:
            option = sum((digit(c) * step for c, step in stage.steps(slot)), zero)
            place = (resolution, zero if slot else digit(stage.before), digit(stage.channels))
            own, extra = costs.further, costs.further
            if slot == 0:
                own, extra = costs.first, costs.repeated
            total += own[(*place, option)] * (slot < used)[:, None]
            total += extra[(*place, option)] * np.where(slot == depth - 1, again, 0)[:, None]
        return self._part(kept, total)

    def _make_tables(self, scaling: Scaling) -> _Tables:
        stem, stages, head = self._all_costs(scaling)
        columns, genes = self.space.ends.columns, self.space.stage_genes
        parts = [self._part([columns['resolution'], columns['stem']], stem)]
        for stage, costs in zip(genes, stages, strict=True):
            parts += self._stage_parts(stage, costs, scaling)
        last = [columns['resolution'], genes[-1].channels]
        if self._after_stages is None:
            last += [columns['head_channels'], columns['head_hidden_channels']]
        parts.append(self._part(last, head))
        steps = np.zeros((len(parts), self.space.num_genes))
        for i, part in enumerate(parts):
            for column, step in part.steps.items():
                steps[i, column] = step
        return _Tables(parts, steps)

    # ---------------------------------------------------------------- costs

    def _after_cost(self, arch: Arch) -> Cost:
        if self._after_stages is None:
            return count_parts(arch, self.convention)[-1].cost
        return self._after_stages(arch)

    def cost(self, arch: Arch) -> Cost:
        """Cost of one Arch of the space."""
        parts = count_parts(arch, self.convention)
        return sum((part.cost for part in parts[:-1]), self._after_cost(arch))

    def costs(self, genes: Genes, scaling: Scaling = Scaling()) -> Costs:  # noqa: B008
        """Costs of base models under one scaling.

        Args:
            genes: Genotypes, shape (n, genes); they need not be canonical.
            scaling: The multipliers.

        Raises:
            ValueError: A gene is out of range.
        """
        genes = self.space.checked(genes)
        if scaling not in self._tables:
            self._tables[scaling] = self._make_tables(scaling)
        parts, steps = self._tables[scaling]
        total = np.zeros((len(genes), 3), dtype=np.int64)
        for start in range(0, len(genes), _ROWS):
            rows = genes[start : start + _ROWS].astype(np.float64)
            indexes = (steps @ rows.T).astype(np.intp)
            terms = np.empty((len(rows), 3), dtype=np.int64)
            own = total[start : start + _ROWS]
            for part, index in zip(parts, indexes, strict=True):
                # Genes are checked: no index has to be.
                own += np.take(part.table, index, axis=0, out=terms, mode='clip')
        if self._after_stages is not None and len(genes):
            total += self._foreign_costs(genes, scaling)
        return Costs(*total.T)

    def _foreign_costs(self, genes: Genes, scaling: Scaling) -> Integers:
        """Costs of what follows the network stages, shape (n, 3)."""
        # Of other genes any will do.
        rows, inverse = np.unique(genes[:, self._outer], axis=0, return_inverse=True)
        costs = np.empty((len(rows), 3), dtype=np.int64)
        for i, row in enumerate(rows):
            key = scaling, row.tobytes()
            if key not in self._after:
                stand_in = np.zeros(self.space.num_genes, dtype=np.int64)
                stand_in[self._outer] = row
                cost = self._after_cost(self.space.decode(stand_in, scaling))
                self._after[key] = _triple(cost)
            costs[i] = self._after[key]
        return costs[inverse.reshape(-1)]

    def range(
        self,
        metric: str = 'flops',
        scaling: Scaling = Scaling(),  # noqa: B008
    ) -> tuple[int, int]:
        """Lowest and highest cost of all base models under a scaling.

        Exact; with `after_stages` what follows the network stages is that of the smallest and of
        the largest base model.

        Args:
            metric: ``flops``, ``params`` or ``acts``.
            scaling: The multipliers.
        """
        choice('metric', metric, Costs._fields)
        low, high = self.range_of([int(name == metric) for name in Costs._fields], scaling)
        return int(low), int(high)

    def range_of(
        self,
        weights: Sequence[float],
        scaling: Scaling = Scaling(),  # noqa: B008
    ) -> tuple[float, float]:
        """Lowest and highest weighted sum of the costs of all base models under a scaling.

        As exact as :meth:`range`, up to the rounding of the sum.

        Args:
            weights: Of flops, params and acts.
            scaling: The multipliers.
        """
        stem, stages, head = (part for part in self._all_costs(scaling))
        found = []
        for sign in (1, -1):
            own = sign * np.array(weights)
            best = stem @ own  # (resolutions, widths)
            for stage, costs in zip(self.space.stage_genes, stages, strict=True):
                summed = _StageCosts(*(cost @ own for cost in costs))
                best = (best[:, :, None] + self._least(stage, summed, scaling)).min(axis=1)
            best = (best[:, :, None] + head @ own).min()
            if self._after_stages is not None:
                extreme = self.space.decode(self.space.extreme(sign < 0), scaling)
                best += np.array(_triple(self._after_cost(extreme))) @ own
            found.append(sign * best.item())
        return found[0], found[1]

    def _least(self, stage: StageGenes, costs: _StageCosts, scaling: Scaling) -> Integers:
        """Least cost of a network stage, shape (resolutions, input widths, widths)."""
        shared = stage.first.shared
        split = [cost.reshape(*cost.shape[:3], shared, -1) for cost in costs]
        first, extra, further = split
        best = None
        for used, again, depth in zip(
            *self._counts(stage, scaling), stage.choices.depths, strict=True
        ):
            cost = first if depth > 1 else first + again * extra
            total = cost.min(axis=-1)
            if depth > 1:
                # The last one comes with its repetitions.
                total = total + (used - 1) * further.min(axis=-1)
                total = total + again * further.min(axis=-1)
            total = total.min(axis=-1)
            best = total if best is None else np.minimum(best, total)
        return best
