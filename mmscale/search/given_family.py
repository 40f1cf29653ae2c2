"""A family that is given, not searched: the baseline that a searched one is compared with."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmscale.arch import (
    SCALING_RULES,
    Arch,
    Genotype,
    Rounding,
    Scaling,
    SearchSpace,
    apply_scaling,
    get_arch,
)
from mmscale.cost import match_scaling
from mmscale.errors import UsageError
from mmscale.search.family import FamilyFitness
from mmscale.search.feasibility import Strategy
from mmscale.search.limits import measure, shown
from mmscale.search.record import Batch, Record
from mmscale.search.result import FamilyMember, OnStep, SearchResult
from mmscale.search.scoring import Scorer
from mmscale.search.searcher import Steps
from mmscale.search.varied import varied

GivenBase = Genotype | Arch | str | Mapping[str, Any] | Sequence[int]
"""A base model: a Genotype, an Arch as :func:`mmscale.get_arch` finds it, or genes."""

GivenStrategy = Sequence[Scaling | Mapping[str, float]]
"""A Scaling, or its multipliers ``dict(depth=, width=, resolution=)``, per scaling stage."""


def given_base(space: SearchSpace, base: GivenBase) -> Genotype:
    """The canonical base model that is given to a search.

    Raises:
        UsageError: There is no such Arch, or it is not in the space.
    """
    try:
        if isinstance(base, Genotype):
            base = base.genes
        if isinstance(base, (list, tuple)):
            return space.genotype(np.array(base))
        return space.encode(get_arch(base))
    except ValueError as error:
        raise UsageError(f'base: {error}') from None


def given_strategy(space: SearchSpace, strategy: GivenStrategy) -> Strategy:
    """The strategy that is given to a search.

    Raises:
        UsageError: It is not one scaling per scaling stage.
    """
    stages = len(space.scaling_stages)
    if not isinstance(strategy, (list, tuple)) or len(strategy) != stages:
        raise UsageError(
            f'strategy={strategy!r:.60} must be a list of {stages} dict(depth=, width=, '
            f'resolution=), one per scaling stage'
        )
    return tuple(
        each if isinstance(each, Scaling) else Scaling.from_json(f'strategy[{j}]', each)
        for j, each in enumerate(strategy)
    )


class GivenFamily:
    """Scores one given family: a base model under a strategy.

    The family is for comparison, not a candidate: where rounding makes it miss a budget by more
    than the tolerance, it is scored all the same, with a warning, and the result says by how much.

    Args:
        family: Holds the budgets and the weights.
        base: The base model, as for :class:`ScalingSearch`.
        strategy: One Scaling per scaling stage of the space, or ``dict(depth=, width=,
            resolution=)``; ``compound`` for uniform compound scaling: depth, width and resolution
            take equal shares of every budget.

    Attributes:
        deviations: Relative deviation of every scaling stage from 2^j times the base model.

    Raises:
        ValueError: The strategy does not have one Scaling per scaling stage.
    """

    def __init__(
        self, family: FamilyFitness, base: GivenBase, strategy: str | GivenStrategy
    ) -> None:
        self.family = family
        space, metric = family.space, family.feasibility.metric
        self.base = given_base(space, base)
        arch = space.decode(self.base)
        rounding = space.rounding
        if strategy == 'compound':
            # Rounding up would turn one block of a stage into two at any factor.
            rounding = Rounding('nearest', space.rounding.channel_divisor)
            dwr = SCALING_RULES['dwr'].scaling
            strategy = [
                match_scaling(arch, dwr, 2.0**j, space.rule, metric, rounding)
                for j in range(len(space.scaling_stages))
            ]
        self.strategy = given_strategy(space, strategy)
        self.archs = [
            apply_scaling(arch, scaling, space.rule, rounding) for scaling in self.strategy
        ]
        limits, table = family.feasibility.limits, family.feasibility.table
        found = [table.cost(arch) for arch in self.archs]
        costs = [measure(cost, metric, limits.latency_model) for cost in found]
        self.deviations = [cost / (costs[0] * 2**j) - 1 for j, cost in enumerate(costs)]

    @property
    def most_evaluations(self) -> int:
        """Distinct Archs that :meth:`run` evaluates."""
        return len(set(self.archs))

    def steps(self, record: Record, on_step: OnStep | None = None) -> Steps[SearchResult]:
        """Scores the family.

        Args:
            record: What is known.
            on_step: Not called: there are no steps.

        Raises:
            ValueError: A network of it cannot be scored.
        """
        del on_step
        family = self.family
        for j, deviation in enumerate(self.deviations):
            if abs(deviation) > family.feasibility.tolerance:
                warnings.warn(
                    f'scaling stage {j} of the given family misses its budget by {deviation:+.1%}',
                    stacklevel=2,
                )
            for limit in family.feasibility.limits.of(j)[1:]:
                own = family.feasibility.table.cost(self.archs[j])
                if limit.excess(limit.deviations(own)):
                    warnings.warn(
                        f'scaling stage {j} of the given family misses {limit.key}: '
                        f'{shown(measure(own, limit.metric, limit.model), limit.metric)}, not '
                        f'{limit}',
                        stacklevel=2,
                    )
        record.step = 'given family' if family.is_scaled else 'given network'
        record.most_evaluations = self.most_evaluations
        scores = yield Batch(self.archs)
        if any(scores[j] is None for j in family.scored_stages):
            raise UsageError(record.explain_failures())
        table = family.feasibility.table
        return SearchResult(
            base=self.base,
            family=tuple(
                FamilyMember(j, self.base, scaling, arch, table.cost(arch), score)
                for j, (scaling, arch, score) in enumerate(
                    zip(self.strategy, self.archs, scores, strict=True)
                )
            ),
            fitness=family.mean([scores[j] for j in family.scored_stages]),
            chain=(),
            evaluations=record.evaluations,
            failed=len(record.failed),
            seed=None,
            settings={
                'strategy': [scaling.to_json() for scaling in self.strategy],
                'deviations': [round(deviation, 6) for deviation in self.deviations],
            },
            varied=varied(family.space),
        )

    def run(self, scorer: Scorer, on_step: OnStep | None = None) -> SearchResult:
        """Searches with a scorer, see :meth:`steps`."""
        return scorer.drive(self.steps(scorer, on_step))
