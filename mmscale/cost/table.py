"""Cost of whole populations of a search space by NumPy indexing."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmscale.arch.arch import Arch
from mmscale.arch.rounding import Scaling
from mmscale.arch.space import Genes, SearchSpace
from mmscale.cost.count import Cost, block_cost, check_convention, count_parts, stem_cost


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
        self._tables: dict[Scaling, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        self._kernel_genes = np.flatnonzero(space.gene_slot >= 0)
        depth_genes = np.flatnonzero(space.gene_slot < 0)
        self._depth_genes = depth_genes[space.gene_stage[self._kernel_genes]]

    def _table(self, scaling: Scaling) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Fixed cost (3,), and what a gene adds (kernel genes, depths, kernels, 3).

        What a kernel gene adds depends on the depth of its network stage: nothing after it, and
        the last block's kernel is that of the extra blocks too.
        """
        if scaling in self._tables:
            return self._tables[scaling]
        space = self.space
        most_depths = max(len(stage.depths) for stage in space.stages)
        most_kernels = max(len(stage.kernels) for stage in space.stages)
        added = np.zeros((len(self._kernel_genes), most_depths, most_kernels, 3), dtype=np.int64)
        for kernel in range(most_kernels):
            deepest = np.where(space.gene_slot < 0, space.num_choices - 1, kernel)
            arch = space.decode(np.minimum(deepest, space.num_choices - 1), scaling)
            stem, size = stem_cost(arch.stem, arch.resolution, self.convention)
            first = 0
            for choices, stage in zip(space.stages, arch.stages, strict=True):
                costs = np.empty((len(stage), 3), dtype=np.int64)
                for slot, block in enumerate(stage):
                    cost, size = block_cost(block, size, self.convention)
                    costs[slot] = cost.flops, cost.params, cost.acts
                for i, depth in enumerate(choices.depths):
                    scaled = space.rounding.depth(depth, scaling.depth)
                    own = min(depth, scaled)
                    added[first : first + own, i, kernel] = costs[:own]
                    added[first + depth - 1, i, kernel] += costs[own:scaled].sum(axis=0)
                first += choices.depths[-1]
        total = stem + self._after(arch)
        fixed = np.array([total.flops, total.params, total.acts], dtype=np.int64)
        self._tables[scaling] = fixed, added
        return self._tables[scaling]

    def _after(self, arch: Arch) -> Cost:
        if self._after_stages is None:
            return count_parts(arch, self.convention)[-1].cost
        return self._after_stages(arch)

    def cost(self, arch: Arch) -> Cost:
        """Cost of one Arch of the space."""
        parts = count_parts(arch, self.convention)
        return sum((part.cost for part in parts[:-1]), self._after(arch))

    def costs(self, genes: Genes, scaling: Scaling = Scaling()) -> Costs:  # noqa: B008
        """Costs of base models under one scaling.

        Args:
            genes: Genotypes, shape (n, genes); they need not be canonical.
            scaling: The multipliers.

        Raises:
            ValueError: A gene is out of range.
        """
        genes = self.space.checked(genes)
        fixed, added = self._table(scaling)
        slots = np.arange(len(self._kernel_genes))
        terms = added[slots, genes[:, self._depth_genes], genes[:, self._kernel_genes]]
        total = fixed + terms.sum(axis=1)
        return Costs(*total.T)
