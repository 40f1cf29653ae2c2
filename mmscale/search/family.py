"""Fitness of a base model: how good the networks are that a scaling strategy makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from mmscale.arch import Genotype
from mmscale.arch.checks import number
from mmscale.arch.space import Genes
from mmscale.errors import UsageError
from mmscale.search.entry import Score
from mmscale.search.feasibility import Feasibility, Strategy
from mmscale.search.scoring import Scorer


@dataclass(frozen=True)
class Candidate:
    """A base model with its fitness under some strategy.

    Attributes:
        genotype: Canonical.
        fitness: Weighted mean of the scores over the scaling stages.
        cost: Cost of the base model, in units of the budget; a float for latencies.
    """

    genotype: Genotype
    fitness: Fraction
    cost: float

    @property
    def order(self) -> tuple[Fraction, float, tuple[int, ...]]:
        """Sorts the best first: higher fitness, then lower cost, then smaller genes."""
        return -self.fitness, self.cost, self.genotype.genes


class FamilyFitness:
    """Scores base models by the family of scaled networks that a strategy makes of them.

    Args:
        feasibility: The budgets and caps.
        weights: Weight of every scaling stage's score in the fitness; a scaling stage of weight
            0 is not evaluated. The default counts the scaled networks alone: 0 for scaling stage
            0 and 1 for the others.

    Raises:
        ValueError: The weights are not one non-negative number per scaling stage of the space.
    """

    def __init__(
        self,
        feasibility: Feasibility,
        weights: Sequence[float] | None = None,
    ) -> None:
        self.feasibility = feasibility
        self.space = feasibility.space
        stages = len(self.space.scaling_stages)
        if weights is None:
            weights = (0, *[1] * (stages - 1)) if stages > 1 else (1,)
        if isinstance(weights, str) or not isinstance(weights, Sequence) or len(weights) != stages:
            raise UsageError(f'weights={weights!r:.60} must be a list of {stages} numbers')
        for stage, weight in enumerate(weights):
            number(f'weights[{stage}]', weight, 0)
        # A decimal of the config is meant as written: 0.1 is one tenth.
        self.weights = tuple(Fraction(str(weight)) for weight in weights)
        if not sum(self.weights):
            raise UsageError(f'weights={list(weights)!r:.60}: at least one must be above 0')

    def alone(self, scaling_stage: int) -> FamilyFitness:
        """The fitness that counts one scaling stage, with the limits of it and of the base."""
        feasibility = self.feasibility.only([scaling_stage] if scaling_stage else [])
        stages = len(self.space.scaling_stages)
        weights = [int(j == scaling_stage) for j in range(stages)]
        return FamilyFitness(feasibility, weights)

    @property
    def settings(self) -> dict[str, Any]:
        """Budgets, caps and weights, plain JSON data."""
        return {
            **self.feasibility.settings,
            'weights': [float(weight) for weight in self.weights],
        }

    @property
    def is_scaled(self) -> bool:
        """Whether there is anything but the base model; messages speak of families only then."""
        return len(self.space.scaling_stages) > 1

    @property
    def scored_stages(self) -> tuple[int, ...]:
        """Scaling stages whose weight is above 0."""
        return tuple(j for j, weight in enumerate(self.weights) if weight)

    def mean(self, scores: Sequence[Score]) -> Fraction:
        """Weighted mean of the scores of :attr:`scored_stages`."""
        weights = [self.weights[j] for j in self.scored_stages]
        total = sum(w * score.value for w, score in zip(weights, scores, strict=True))
        return Fraction(total, sum(weights))

    def candidates(
        self, scorer: Scorer, genes: Genes, strategy: Strategy, least: Fraction | None = None
    ) -> list[Candidate]:
        """Scores base models under a strategy.

        Args:
            scorer: Scores Archs.
            genes: Canonical genotypes, shape (n, genes).
            strategy: One Scaling per scaling stage of the space.
            least: Base models whose fitness is below it may be dropped, as soon as that is
                certain; by default none.

        Returns:
            The candidates, in the order of `genes`, without those of which a network cannot be
            scored.

        Raises:
            ValueError: A base model does not meet the budgets, or most networks cannot be scored.
        """
        if not self.feasibility.feasible(genes, strategy).all():
            raise UsageError('a base model that does not meet the budgets must not be scored')
        if least is not None:
            genes = self._without_losers(scorer, genes, strategy, least)
        stages = self.scored_stages
        archs = [self.space.decode(row, strategy[j]) for row in genes for j in stages]
        scores = scorer.score(archs)
        costs = self.feasibility.cost(genes)
        candidates = []
        for i, row in enumerate(genes):
            own = scores[i * len(stages) : (i + 1) * len(stages)]
            if None not in own:
                genotype, fitness = self.space.genotype(row), self.mean(own)
                candidates.append(Candidate(genotype, fitness, costs[i].item()))
        return candidates

    def _without_losers(
        self, scorer: Scorer, genes: Genes, strategy: Strategy, least: Fraction
    ) -> Genes:
        """Scores base models scaling stage by scaling stage; leaves out who cannot reach `least`.

        What the later scaling stages may add at most bounds the fitness, so the last one, which
        costs the most, has the tightest bound.
        """
        sums = [Fraction(0)] * len(genes)
        open_weight = sum(self.weights)
        wanted = least * open_weight
        for j in self.scored_stages:
            weight = self.weights[j]
            open_weight -= weight
            archs = [self.space.decode(row, strategy[j]) for row in genes]
            needed = [(wanted - done - open_weight) / weight for done in sums]
            scores = scorer.score_needed(archs, needed)
            kept = [i for i, score in enumerate(scores) if score is not None]
            sums = [sums[i] + weight * scores[i].value for i in kept]
            genes = genes[kept]
        return genes
