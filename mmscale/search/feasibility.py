"""Budgets: which base models and scalings meet them, by table, before anything is evaluated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmscale.arch import Arch, Scaling, SearchSpace
from mmscale.arch.checks import number
from mmscale.arch.genes import Genes
from mmscale.cost import Costs, CostTable, LatencyModel
from mmscale.cost.scaled import check_metric
from mmscale.errors import UsageError
from mmscale.search.distinct import distinct_scalings
from mmscale.search.limits import Limits, PerStage, measure, read_latency_model, shown
from mmscale.search.operators import take_new
from mmscale.search.repair import descend

Strategy = tuple[Scaling, ...]
"""One Scaling per scaling stage, from 0 on; ``(Scaling(),)`` is the base model alone."""

Budget = float | Mapping[str, PerStage]
"""Of the base model; or budgets by metric, of which the first one grows."""

_SAMPLE = 4096
_SAMPLES = 8
_REPAIR = 256
_REPAIRS = 8
# Base models whose feasible scalings are kept, per scaling stage.
_MOST_ADMITTED = 2**15


def noun(space: SearchSpace) -> str:
    """What a base model is called: a network, where nothing scales it."""
    return 'base model' if len(space.scaling_stages) > 1 else 'network'


class Feasibility:
    """The budgets and caps of a family of scaled networks.

    The budget of the base model is nominal; the budget of scaling stage j is 2^j times the actual
    cost of the base model. A cost meets a budget if it deviates by at most `tolerance` times the
    budget, the same tolerance everywhere. There may be further budgets, and caps.

    Args:
        table: Costs of the space.
        budget: Budget of the base model, in units of `metric`; or budgets by metric, of which the
            first one grows as above, and the others are of the base model, or lists with a number
            or None per scaling stage. None, in a space with one scaling stage, for caps alone or
            for no limit at all.
        metric: ``flops`` (the default), ``params``, ``acts`` or ``latency``; not beside budgets
            by metric.
        tolerance: Largest relative deviation from a budget.
        scaled_stages: Scaling stages from 1 on that are to meet their budgets; by default all.
            The others have one scaling, (1, 1, 1), and no budget.
        caps: By metric, what no network of the family may exceed: a number, or a list with a
            number or None per scaling stage.
        latency_model: Predicts latencies in milliseconds, or the JSON file of such a model.

    Attributes:
        limits: The budgets and caps.

    Raises:
        ValueError: A setting is not allowed, or no network can come near a budget or a cap; the
            message names the reachable range.
    """

    def __init__(
        self,
        table: CostTable,
        budget: Budget | None,
        metric: str | None = None,
        tolerance: float = 0.05,
        scaled_stages: Iterable[int] | None = None,
        caps: Mapping[str, PerStage] | None = None,
        latency_model: LatencyModel | str | Path | None = None,
    ) -> None:
        model = read_latency_model(latency_model)
        if budget is None and len(table.space.scaling_stages) > 1:
            raise UsageError(
                'budget=None: a family grows with the budget of its base model, so there must be '
                'one; only a space with one scaling stage is searched without'
            )
        if not isinstance(budget, Mapping):
            check_metric(metric or 'flops', model, f'metric={metric!r}')
        if budget is not None and not isinstance(budget, Mapping):
            budget = {metric or 'flops': number('budget', budget, above=0)}
        self.limits = Limits(table, budget, caps, tolerance, model)
        self.metric = self.limits.growing or metric or next(iter(self.limits.caps), 'flops')
        self.budget = self.limits.budgets.get(self.metric)
        if metric not in (None, self.metric):
            raise UsageError(
                f'metric={metric!r:.60} beside budget={dict(budget)!r:.60}: the first budget is '
                f'the one that grows, so leave metric out'
            )
        self.table = table
        self.space = table.space
        self.tolerance = tolerance
        stages = range(1, len(self.space.scaling_stages))
        self.scaled_stages = frozenset(stages if scaled_stages is None else scaled_stages)
        self._distinct: dict[int, tuple[Scaling, ...]] = {}
        # What base models admit, as evolutions look at the same ones again and again.
        self._admitted: dict[int, dict[bytes, NDArray[np.bool_]]] = {}
        self.limits.check(self.distinct_scalings, [0, *sorted(self.scaled_stages)], self.noun)

    def only(self, scaled_stages: Iterable[int]) -> Feasibility:
        """The same, of some of the scaling stages from 1 on."""
        found = copy(self)
        found.scaled_stages = frozenset(scaled_stages)
        found._admitted = {}
        return found

    @property
    def base_range(self) -> tuple[float, float]:
        """Lowest and highest cost of any base model."""
        return self.limits.range(self.metric)

    @property
    def noun(self) -> str:
        """What messages call a base model: in a space with one scaling stage a network."""
        return noun(self.space)

    @property
    def settings(self) -> dict[str, Any]:
        """Budgets and caps, plain JSON data."""
        return {
            'budget': self.budget,
            'metric': self.metric,
            'tolerance': self.tolerance,
            **self.limits.settings,
        }

    # ------------------------------------------------------------------ masks

    def cost(self, genes: Genes, scaling: Scaling = Scaling()) -> NDArray:  # noqa: B008
        """Cost of base models under a scaling, in units of the metric.

        Args:
            genes: Shape (n, genes).
            scaling: The multipliers.

        Returns:
            Shape (n,), integers, or floats of latencies.
        """
        return self._measure(self.table.costs(genes, scaling))

    def _measure(self, costs: Costs) -> NDArray:
        return measure(costs, self.metric, self.limits.latency_model)

    def deviations(self, genes: Genes, strategy: Strategy) -> NDArray[np.float64]:
        """Relative deviation from the growing budget of every scaling stage, signed.

        Args:
            genes: Shape (n, genes).
            strategy: Its first Scaling is the base model's.

        Returns:
            Shape (n, scaling stages).
        """
        base = self.cost(genes)
        columns = [np.zeros(len(genes)) if self.budget is None else base / self.budget - 1]
        for j, scaling in enumerate(strategy[1:], start=1):
            if j in self.scaled_stages:
                grown = self.limits.of(j)[0]
                columns.append(grown.deviations(self.table.costs(genes, scaling), base))
            else:
                columns.append(np.zeros(len(genes)))
        return np.stack(columns, axis=1)

    def base_feasible(self, genes: Genes) -> NDArray[np.bool_]:
        """Which base models meet budgets and caps of scaling stage 0, shape (n,)."""
        return self.feasible(genes, (Scaling(),))

    def scaled_feasible(
        self,
        genes: Genes,
        scaling_stage: int,
        scaling: Scaling,
        base_cost: NDArray | None = None,
    ) -> NDArray[np.bool_]:
        """Which base models, scaled, meet the budgets and caps of a scaling stage.

        Those of the base model are not asked for.

        Args:
            genes: Shape (n, genes).
            scaling_stage: From 1 on.
            scaling: The multipliers.
            base_cost: Cost of the base models, shape (n,), where it is known already.

        Returns:
            Shape (n,).
        """
        if scaling_stage not in self.scaled_stages:
            return np.ones(len(genes), dtype=bool)
        base_cost = self.cost(genes) if base_cost is None else base_cost
        costs = self.table.costs(genes, scaling)
        return self.limits.excess(costs, scaling_stage, base_cost) == 0

    def admitted(self, genes: Genes, scaling_stage: int) -> NDArray[np.bool_]:
        """Which distinct scalings of a scaling stage base models admit.

        Args:
            genes: Shape (n, genes).
            scaling_stage: From 1 on.

        Returns:
            Shape (distinct scalings, n), in the order of :meth:`distinct_scalings`.
        """
        known = self._admitted.setdefault(scaling_stage, {})
        rows = [row.tobytes() for row in genes]
        new = {row: i for i, row in enumerate(rows) if row not in known}
        scalings = self.distinct_scalings(scaling_stage)
        if new:
            if len(known) + len(new) > _MOST_ADMITTED:
                known.clear()
                new = {row: i for i, row in enumerate(rows)}
            own = genes[list(new.values())]
            base = self.cost(own)
            masks = [self.scaled_feasible(own, scaling_stage, s, base) for s in scalings]
            known.update(zip(new, np.stack(masks, axis=1), strict=True))
        found = np.array([known[row] for row in rows], dtype=bool)
        return found.reshape(len(rows), len(scalings)).T

    def feasible(self, genes: Genes, strategy: Strategy) -> NDArray[np.bool_]:
        """Which base models meet all budgets and caps of a strategy, shape (n,)."""
        return self._excess(genes, strategy) == 0

    def _excess(self, genes: Genes, strategy: Strategy) -> NDArray[np.float64]:
        """Sum over the scaling stages of what deviates more than allowed, shape (n,)."""
        own = self.table.costs(genes)
        base = self._measure(own)
        columns = [np.zeros(len(genes))]
        for j, scaling in enumerate(strategy):
            if j == 0 or j in self.scaled_stages:
                costs = self.table.costs(genes, scaling) if j else own
                for limit in self.limits.of(j):
                    columns.append(limit.excess(limit.deviations(costs, base)))
        return np.stack(columns, axis=1).sum(axis=1)

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
        base = self.cost(row)
        archs: dict[Arch, Scaling] = {}
        for scaling in scalings:
            if self.scaled_feasible(row, scaling_stage, scaling, base)[0]:
                archs.setdefault(self.space.decode(genes, scaling), scaling)
        if not archs:
            missed = self._missed(row, scaling_stage, scalings)
            raise UsageError(
                f'scaling stage {scaling_stage}: no scaling brings this base model to {missed}'
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
        """Moves base models to the limits of a strategy by single changes, see :func:`descend`.

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
        return descend(self.space, genes, lambda rows: self._excess(rows, strategy), rng)

    # ------------------------------------------------------------------ messages

    def _missed(self, genes: Genes, scaling_stage: int, scalings: Sequence[Scaling]) -> str | None:
        """Which limits of a scaling stage no base model meets at once, and what is near.

        Args:
            genes: Base models, shape (n, genes).
            scaling_stage: From 0 on.
            scalings: Scalings of it; a base model has to meet the limits under any of them.
        """
        if scaling_stage and scaling_stage not in self.scaled_stages:
            return None
        costs = [self.table.costs(genes, scaling) for scaling in scalings]
        together = Costs(*(np.concatenate(columns) for columns in zip(*costs, strict=True)))
        base = np.tile(self.cost(genes), len(scalings))
        found = self.limits.first_missed(together, scaling_stage, base)
        if found is None:
            return None
        limits, nearest = found
        names = ['its budget' if scaling_stage else 'the budget']
        for limit in limits[1:]:
            kind = 'cap' if limit.tolerance is None else 'budget'
            names.append(f'the {kind} of {limit.metric}')
        return f'{" and ".join(names)}: {nearest}'

    def explain_base(self, genes: Genes) -> str:
        """Says which budget or cap of scaling stage 0 a base model misses.

        Args:
            genes: The base model, shape (1, genes).
        """
        costs = self.table.costs(genes)
        for limit in self.limits.of(0):
            if limit.excess(limit.deviations(costs)).any():
                cost = measure(costs, limit.metric, limit.model)[0].item()
                wanted = str(limit)
                if limit.tolerance is not None:
                    wanted = f'{limit.value:,} within a tolerance of {limit.tolerance:.3g}'
                return f'base has {shown(cost, limit.metric)}, not {wanted}'
        return 'base meets all budgets and caps'

    def explain_empty(self, strategy: Strategy, rng: np.random.Generator) -> str:
        """Says which limit of a strategy no base model was found to meet, and what is near."""
        genes = self.space.sample(rng, _SAMPLE)
        genes = np.concatenate([genes, self._descend(genes[:_REPAIR], (Scaling(),), rng)])
        missed = self._missed(genes, 0, (Scaling(),))
        if missed is not None:
            stage = 'scaling stage 0: ' if len(self.space.scaling_stages) > 1 else ''
            return f'{stage}no {self.noun} meets {missed}'
        on_budget = genes[self.base_feasible(genes)]
        for j in range(1, len(strategy)):
            missed = self._missed(on_budget, j, (strategy[j],))
            if missed is not None:
                return f'scaling stage {j}: {strategy[j]} brings no base model to {missed}'
        return (
            f'no base model meets the {self._limit_words} of all {len(strategy)} scaling stages '
            f'at once within a tolerance of {self.tolerance:.3g}'
        )

    def explain_unscalable(self, genes: Genes) -> str:
        """Says which scaling stage none of these base models can be scaled to.

        Args:
            genes: Base models, shape (n, genes), none of which can be scaled to all of them.
        """
        for j in range(1, len(self.space.scaling_stages)):
            scalings = self.distinct_scalings(j)
            missed = self._missed(genes, j, scalings)
            if missed is not None:
                return (
                    f'scaling stage {j}: none of its {len(scalings)} distinct scalings brings a '
                    f'base model to {missed}'
                )
        return (
            f'none of {len(genes)} base models within the budget can be scaled to all '
            f'{len(self.space.scaling_stages)} scaling stages within a tolerance of '
            f'{self.tolerance:.3g}'
        )

    @property
    def _limit_words(self) -> str:
        return 'budgets and caps' if self.limits.caps else 'budgets'
