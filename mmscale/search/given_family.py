"""A family that is given, not searched: the baseline that a searched one is compared with."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from mmscale.arch import SCALING_RULES, Genotype, Rounding, Scaling, apply_scaling
from mmscale.cost import match_scaling
from mmscale.errors import UsageError
from mmscale.search.family import FamilyFitness
from mmscale.search.result import FamilyMember, SearchResult


class GivenFamily:
    """Scores one given family: a base model under a strategy.

    The family is for comparison, not a candidate: where rounding makes it miss a budget by more
    than the tolerance, it is scored all the same, with a warning, and the result says by how much.

    Args:
        family: Scores Archs; holds the budgets and the weights.
        base: The base model.
        strategy: One Scaling per scaling stage of the space; None for uniform compound scaling:
            depth, width and resolution take equal shares of every budget.

    Attributes:
        deviations: Relative deviation of every scaling stage from 2^j times the base model.

    Raises:
        ValueError: The strategy does not have one Scaling per scaling stage.
    """

    def __init__(
        self, family: FamilyFitness, base: Genotype, strategy: Sequence[Scaling] | None = None
    ) -> None:
        self.family = family
        self.base = base
        space, metric = family.space, family.feasibility.metric
        stages = len(space.scaling_stages)
        arch = space.decode(base)
        rounding = space.rounding
        if strategy is None:
            # Rounding up would turn one block of a stage into two at any factor.
            rounding, dwr = Rounding('nearest'), SCALING_RULES['dwr'].scaling
            strategy = [
                match_scaling(arch, dwr, 2.0**j, space.rule, metric, rounding)
                for j in range(stages)
            ]
        if len(strategy) != stages:
            raise UsageError(
                f'strategy={list(strategy)!r:.60} must be {stages} scalings, one per scaling stage'
            )
        self.strategy = tuple(strategy)
        self.archs = [apply_scaling(arch, scaling, space.rule, rounding) for scaling in strategy]
        costs = [getattr(family.feasibility.table.cost(arch), metric) for arch in self.archs]
        self.deviations = [cost / (costs[0] * 2**j) - 1 for j, cost in enumerate(costs)]

    @property
    def most_evaluations(self) -> int:
        """Distinct Archs that :meth:`run` evaluates."""
        return len(set(self.archs))

    def run(self) -> SearchResult:
        """Scores the family.

        Raises:
            ValueError: A network of it cannot be scored.
        """
        family = self.family
        for j, deviation in enumerate(self.deviations):
            if abs(deviation) > family.feasibility.tolerance:
                warnings.warn(
                    f'scaling stage {j} of the given family misses its budget by {deviation:+.1%}',
                    stacklevel=2,
                )
        family.scorer.step = 'given family'
        family.scorer.most_evaluations = self.most_evaluations
        scores = family.scorer.score(self.archs)
        if any(scores[j] is None for j in family.scored_stages):
            raise UsageError(family.scorer.explain_failures())
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
            evaluations=family.scorer.evaluations,
            failed=len(family.scorer.failed),
            seed=None,
            settings={
                'strategy': [scaling.to_json() for scaling in self.strategy],
                'deviations': [round(deviation, 6) for deviation in self.deviations],
            },
        )
