"""Budgets: which base models and scalings meet them, by table, before anything is evaluated."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from mmscale.arch import Arch, Scaling, SearchSpace
from mmscale.arch.checks import choice, number
from mmscale.arch.genes import Genes
from mmscale.cost import Costs, CostTable
from mmscale.errors import UsageError
from mmscale.search.distinct import distinct_scalings
from mmscale.search.operators import randomise_dead, take_new

Strategy = tuple[Scaling, ...]
"""One Scaling per scaling stage, from 0 on; ``(Scaling(),)`` is the base model alone."""

_SAMPLE = 4096
_SAMPLES = 8
_REPAIR = 256
_REPAIRS = 8
# Genes of the neighbours of base models that are looked at together.
_NEIGHBOURS = 2**21


def noun(space: SearchSpace) -> str:
    """What a base model is called: a network, where nothing scales it."""
    return 'base model' if len(space.scaling_stages) > 1 else 'network'


class Feasibility:
    """The budgets of a family of scaled networks.

    The budget of the base model is nominal; the budget of scaling stage j is 2^j times the actual
    cost of the base model. A cost meets a budget if it deviates by at most `tolerance` times the
    budget, the same tolerance everywhere.

    Args:
        table: Costs of the space.
        budget: Budget of the base model, in units of `metric`.
        metric: Column of the table, ``flops``, ``params`` or ``acts``.
        tolerance: Largest relative deviation from a budget.
        scaled_stages: Scaling stages from 1 on that are to meet their budgets; by default all.
            The others have one scaling, (1, 1, 1), and no budget.

    Raises:
        ValueError: A setting is not allowed, or no base model can come near the budget; the
            message names the reachable range.
    """

    def __init__(
        self,
        table: CostTable,
        budget: float,
        metric: str = 'flops',
        tolerance: float = 0.05,
        scaled_stages: Iterable[int] | None = None,
    ) -> None:
        choice('metric', metric, Costs._fields)
        number('budget', budget, above=0)
        number('tolerance', tolerance, above=0, below=1)
        self.table = table
        self.space = table.space
        self.budget = budget
        self.metric = metric
        self.tolerance = tolerance
        stages = range(1, len(self.space.scaling_stages))
        self.scaled_stages = frozenset(stages if scaled_stages is None else scaled_stages)
        self._distinct: dict[int, tuple[Scaling, ...]] = {}
        low, high = self.base_range
        if high < budget * (1 - tolerance) or low > budget * (1 + tolerance):
            raise UsageError(
                f'budget={budget:,.15g} {metric} is out of reach: {self.noun}s of this space have '
                f'{low:,} to {high:,} {metric} (tolerance {tolerance:.3g})'
            )

    @property
    def base_range(self) -> tuple[int, int]:
        """Lowest and highest cost of any base model."""
        return self.table.range(self.metric)

    @property
    def noun(self) -> str:
        """What messages call a base model: in a space with one scaling stage a network."""
        return noun(self.space)

    # ------------------------------------------------------------------ masks

    def cost(self, genes: Genes, scaling: Scaling = Scaling()) -> NDArray[np.int64]:  # noqa: B008
        """Cost of base models under a scaling, in units of the metric.

        Args:
            genes: Shape (n, genes).
            scaling: The multipliers.

        Returns:
            Shape (n,).
        """
        return getattr(self.table.costs(genes, scaling), self.metric)

    def deviations(self, genes: Genes, strategy: Strategy) -> NDArray[np.float64]:
        """Relative deviation from the budget of every scaling stage of a strategy, signed.

        Args:
            genes: Shape (n, genes).
            strategy: Its first Scaling is the base model's.

        Returns:
            Shape (n, scaling stages).
        """
        base = self.cost(genes)
        columns = [base / self.budget - 1]
        for j, scaling in enumerate(strategy[1:], start=1):
            columns.append(self._scaled_deviation(genes, j, scaling, base))
        return np.stack(columns, axis=1)

    def base_feasible(self, genes: Genes) -> NDArray[np.bool_]:
        """Which base models meet the base budget, shape (n,)."""
        return self.feasible(genes, (Scaling(),))

    def scaled_feasible(
        self,
        genes: Genes,
        scaling_stage: int,
        scaling: Scaling,
        base_cost: NDArray[np.int64] | None = None,
    ) -> NDArray[np.bool_]:
        """Which base models, scaled, meet the budget of a scaling stage.

        The base budget is not asked for.

        Args:
            genes: Shape (n, genes).
            scaling_stage: From 1 on.
            scaling: The multipliers.
            base_cost: Cost of the base models, shape (n,), where it is known already.

        Returns:
            Shape (n,).
        """
        deviation = self._scaled_deviation(genes, scaling_stage, scaling, base_cost)
        return np.abs(deviation) <= self.tolerance

    def admitted(self, genes: Genes, scaling_stage: int) -> NDArray[np.bool_]:
        """Which distinct scalings of a scaling stage base models admit.

        Args:
            genes: Shape (n, genes).
            scaling_stage: From 1 on.

        Returns:
            Shape (distinct scalings, n), in the order of :meth:`distinct_scalings`.
        """
        base = self.cost(genes)
        scalings = self.distinct_scalings(scaling_stage)
        return np.stack([self.scaled_feasible(genes, scaling_stage, s, base) for s in scalings])

    def _scaled_deviation(
        self,
        genes: Genes,
        scaling_stage: int,
        scaling: Scaling,
        base_cost: NDArray[np.int64] | None = None,
    ) -> NDArray[np.float64]:
        if scaling_stage not in self.scaled_stages:
            return np.zeros(len(genes))
        base_cost = self.cost(genes) if base_cost is None else base_cost
        return self.cost(genes, scaling) / (base_cost * 2**scaling_stage) - 1

    def feasible(self, genes: Genes, strategy: Strategy) -> NDArray[np.bool_]:
        """Which base models meet all budgets of a strategy, shape (n,)."""
        return self._excess(genes, strategy) == 0

    def _excess(self, genes: Genes, strategy: Strategy) -> NDArray[np.float64]:
        """Sum over the scaling stages of what deviates more than allowed, shape (n,)."""
        over = np.abs(self.deviations(genes, strategy)) - self.tolerance
        return np.maximum(over, 0).sum(axis=1)

    # ------------------------------------------------------------------ scalings

    def distinct_scalings(self, scaling_stage: int) -> tuple[Scaling, ...]:
        """Scalings of a scaling stage that differ, see :func:`distinct_scalings`."""
        if scaling_stage and scaling_stage not in self.scaled_stages:
            return (Scaling(),)
        if scaling_stage not in self._distinct:
            self._distinct[scaling_stage] = distinct_scalings(self.space, scaling_stage)
        return self._distinct[scaling_stage]

    def scalings_of(
        self, genes: Genes, scaling_stage: int, present: Scaling | None = None
    ) -> list[tuple[Scaling, Arch]]:
        """The distinct feasible scalings of one base model.

        Args:
            genes: Shape (genes,).
            scaling_stage: From 1 on.
            present: If feasible it comes first, and stands for all that mean the same Arch.

        Returns:
            Pairs of a Scaling and the scaled Arch.

        Raises:
            ValueError: There is none; the message names the scaling stage, the tolerance and
                the nearest costs within reach.
        """
        row = np.atleast_2d(genes)
        scalings = self.distinct_scalings(scaling_stage)
        if present is not None:
            scalings = (present, *scalings)
        deviations = [self._scaled_deviation(row, scaling_stage, s)[0] for s in scalings]
        archs: dict[Arch, Scaling] = {}
        for scaling, deviation in zip(scalings, deviations, strict=True):
            if abs(deviation) <= self.tolerance:
                archs.setdefault(self.space.decode(genes, scaling), scaling)
        if not archs:
            raise UsageError(
                f'scaling stage {scaling_stage}: no scaling brings this base model to its budget: '
                + self._nearest(np.array(deviations), scaling_stage)
            )
        return [(scaling, arch) for arch, scaling in archs.items()]

    # ------------------------------------------------------------------ base models

    def draw(
        self,
        rng: np.random.Generator,
        limit: int,
        strategy: Strategy = (Scaling(),),  # noqa: B008
        seen: set[bytes] | None = None,
    ) -> Genes:
        """Draws distinct base models that meet all budgets of a strategy.

        Samples of the space are filtered; if too few remain, more are moved towards the budgets,
        gene by gene. The effort is bounded, so that fewer may come back, or none.

        Args:
            rng: Source of randomness.
            limit: Largest number to draw.
            strategy: The budgets to meet.
            seen: Bytes of genotypes that are not drawn; what is drawn is added.

        Returns:
            Canonical genotypes, shape (at most limit, genes).
        """
        seen = set() if seen is None else seen
        found = np.empty((0, self.space.num_genes), dtype=np.int64)
        for _ in range(_SAMPLES):
            if len(found) >= limit:
                return found
            genes = self.space.sample(rng, _SAMPLE)
            genes = genes[self.feasible(genes, strategy)]
            found = np.concatenate([found, take_new(genes, seen, limit - len(found))])
        for _ in range(_REPAIRS):
            before = len(found)
            if before >= limit:
                break
            genes = self.repair(self.space.sample(rng, _REPAIR), strategy, rng)
            found = np.concatenate([found, take_new(genes, seen, limit - before)])
            if len(found) == before:
                break
        return found

    def repair(self, genes: Genes, strategy: Strategy, rng: np.random.Generator) -> Genes:
        """Moves base models to the budgets of a strategy by changing single genes.

        Each step takes the single change that lessens what deviates too much the most, or a
        random one of those that meet all budgets.

        Args:
            genes: Shape (n, genes).
            strategy: The budgets to meet.
            rng: Source of randomness.

        Returns:
            Those that meet the budgets in the end, in their order; feasible ones unchanged.
        """
        genes = self._descend(genes, strategy, rng)
        return genes[self.feasible(genes, strategy)]

    def _descend(self, genes: Genes, strategy: Strategy, rng: np.random.Generator) -> Genes:
        genes = self.space.canonicalise(genes)
        excess = self._excess(genes, strategy)
        rows = np.flatnonzero(excess)
        choices = self.space.num_choices
        gene = np.repeat(np.arange(len(choices)), choices - 1)
        shift = np.concatenate([np.arange(1, n) for n in choices])
        for _ in range(self.space.num_genes):
            if not len(rows):
                break
            filled = randomise_dead(self.space, genes[rows], rng)
            reached = self._reached(filled, gene, shift, strategy)
            lots = np.where(reached == 0, -rng.random(reached.shape), reached)
            best = lots.argmin(axis=1)
            least = reached[np.arange(len(rows)), best]
            better = np.flatnonzero(least < excess[rows])
            moved, column = filled[better], gene[best[better]]
            place = np.arange(len(better)), column
            moved[place] = (moved[place] + shift[best[better]]) % choices[column]
            genes[rows[better]] = self.space.canonicalise(moved)
            excess[rows[better]] = least[better]
            rows = rows[better[least[better] > 0]]
        return genes

    def _reached(self, genes: Genes, gene: Genes, shift: Genes, strategy: Strategy) -> NDArray:
        """Excess after every change of one gene (none, if it is dead), shape (n, changes)."""
        changes, choices = np.arange(len(gene)), self.space.num_choices[gene]
        # So many rows at once that all of their neighbours take some dozen megabytes.
        step = max(1, _NEIGHBOURS // (len(gene) * genes.shape[1]))
        found = np.empty((len(genes), len(gene)))
        for start in range(0, len(genes), step):
            near = np.repeat(genes[start : start + step, None], len(gene), axis=1)
            near[:, changes, gene] = (near[:, changes, gene] + shift) % choices
            excess = self._excess(near.reshape(-1, genes.shape[1]), strategy)
            found[start : start + step] = excess.reshape(-1, len(gene))
        return found

    # ------------------------------------------------------------------ messages

    def _nearest(self, deviations: NDArray[np.float64], scaling_stage: int) -> str:
        target = 2.0**scaling_stage
        unit = f"x the base model's {self.metric}" if scaling_stage else f'x {self.budget:,}'
        below, above = deviations[deviations < 0], deviations[deviations >= 0]
        reached = [
            f'{(1 + deviation) * target:.4g}'
            for deviation in ([below.max()] if len(below) else [])
            + ([above.min()] if len(above) else [])
        ]
        return (
            f'wanted {target:g} {unit} within a tolerance of {self.tolerance:.3g}, '
            f'nearest within reach {" and ".join(reached)}'
        )

    def explain_empty(self, strategy: Strategy, rng: np.random.Generator) -> str:
        """Says which budget of a strategy no base model was found to meet, and what is near."""
        genes = self.space.sample(rng, _SAMPLE)
        genes = np.concatenate([genes, self._descend(genes[:_REPAIR], (Scaling(),), rng)])
        on_budget = genes[self.base_feasible(genes)]
        if not len(on_budget):
            nearest = self._nearest(self.deviations(genes, strategy)[:, 0], 0)
            stage = 'scaling stage 0: ' if len(self.space.scaling_stages) > 1 else ''
            return f'{stage}no {self.noun} meets the budget: {nearest}'
        deviations = self.deviations(on_budget, strategy)
        for j in range(1, len(strategy)):
            if (np.abs(deviations[:, j]) > self.tolerance).all():
                return (
                    f'scaling stage {j}: {strategy[j]} brings no base model to its budget: '
                    + self._nearest(deviations[:, j], j)
                )
        return (
            f'no base model meets the budgets of all {len(strategy)} scaling stages at once '
            f'within a tolerance of {self.tolerance:.3g}'
        )

    def explain_unscalable(self, genes: Genes) -> str:
        """Says which scaling stage none of these base models can be scaled to.

        Args:
            genes: Base models, shape (n, genes), none of which can be scaled to all of them.
        """
        for j in range(1, len(self.space.scaling_stages)):
            scalings = self.distinct_scalings(j)
            deviations = np.stack([self._scaled_deviation(genes, j, s) for s in scalings])
            if (np.abs(deviations) > self.tolerance).all():
                return (
                    f'scaling stage {j}: none of its {len(scalings)} distinct scalings brings a '
                    f'base model to its budget: ' + self._nearest(deviations.ravel(), j)
                )
        return (
            f'none of {len(genes)} base models within the budget can be scaled to all '
            f'{len(self.space.scaling_stages)} scaling stages within a tolerance of '
            f'{self.tolerance:.3g}'
        )
