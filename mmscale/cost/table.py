"""Cost of whole populations of a search space by NumPy indexing."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmscale.arch.scaling import Scaling
from mmscale.arch.space import Genes, SearchSpace
from mmscale.cost.count import block_cost, check_convention, head_cost, stem_cost


class Costs(NamedTuple):
    """Costs of a population, each of shape (n,), int64; see :class:`mmscale.cost.Cost`."""

    flops: NDArray[np.int64]
    params: NDArray[np.int64]
    acts: NDArray[np.int64]


class CostTable:
    """Costs of every Arch of a space, exact to the last unit.

    Block costs depend on the network stage, the slot, the kernel and the scaling's width and
    resolution, never on the other genes, because odd kernels keep the spatial size. They are
    read off decoded Archs, so the table has no shape rules of its own.

    Args:
        space: The search space.
        convention: See :func:`mmscale.cost.count`.

    Raises:
        ValueError: The convention is unknown.
    """

    def __init__(self, space: SearchSpace, convention: str = 'mmscale') -> None:
        check_convention(convention)
        self.space = space
        self.convention = convention
        self._tables: dict[Scaling, tuple[NDArray[np.int64], list[NDArray[np.int64]]]] = {}

    def _table(self, scaling: Scaling) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
        """Fixed cost (3,) and, per network stage, block costs (slots, kernels, 3)."""
        if scaling in self._tables:
            return self._tables[scaling]
        space = self.space
        most_kernels = max(len(stage.kernels) for stage in space.stages)
        fixed = np.zeros(3, dtype=np.int64)
        tables: list[list[NDArray[np.int64]]] = [[] for _ in space.stages]
        for kernel in range(most_kernels):
            deepest = np.where(space.gene_slot < 0, space.num_choices - 1, kernel)
            arch = space.decode(np.minimum(deepest, space.num_choices - 1), scaling)
            stem, size = stem_cost(arch.stem, arch.resolution, self.convention)
            for i, stage in enumerate(arch.stages):
                costs = []
                for block in stage:
                    cost, size = block_cost(block, size, self.convention)
                    costs.append((cost.flops, cost.params, cost.acts))
                if kernel < len(space.stages[i].kernels):
                    tables[i].append(np.array(costs, dtype=np.int64))
            head = head_cost(arch.head, arch.widths[-1], size, self.convention)
            total = stem + head
            fixed = np.array([total.flops, total.params, total.acts], dtype=np.int64)
        self._tables[scaling] = fixed, [np.stack(table, axis=1) for table in tables]
        return self._tables[scaling]

    def costs(self, genes: Genes, scaling: Scaling = Scaling()) -> Costs:  # noqa: B008
        """Costs of base models under one scaling.

        Args:
            genes: Genotypes, shape (n, genes); they need not be canonical.
            scaling: The multipliers.

        Raises:
            ValueError: A gene is out of range.
        """
        space = self.space
        genes = np.asarray(genes)
        depths = space.depths(genes)
        fixed, tables = self._table(scaling)
        total = np.repeat(fixed[None], len(genes), axis=0)
        for i, table in enumerate(tables):
            kernels = genes[:, (space.gene_stage == i) & (space.gene_slot >= 0)]
            base_depth = depths[:, i]
            depth = np.array(
                [space.rounding.depth(n, scaling.depth) for n in space.stages[i].depths]
            )[np.searchsorted(space.stages[i].depths, base_depth)]
            for slot in range(len(table)):
                # An extra block repeats the kernel of the last base block.
                column = np.minimum(slot, base_depth - 1)
                kernel = np.take_along_axis(kernels, column[:, None], axis=1)[:, 0]
                total += np.where((slot < depth)[:, None], table[slot][kernel], 0)
        return Costs(*total.T)
