"""Fitness of a base model: how good the networks are that a scaling strategy makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from mmscale.arch import Arch, Genotype, Scaling
from mmscale.arch.checks import number
from mmscale.errors import UsageError
from mmscale.search.entry import Score
from mmscale.search.feasibility import Feasibility, Strategy
from mmscale.search.record import Batch, Record
from mmscale.search.searcher import Steps

# Networks that are kept, as candidates are looked at again: some hundred megabytes at most.
_MOST_NETWORKS = 2**14


@dataclass(frozen=True)
class Proposal:
    """A base model and what scales it: a family that may be scored.

    Attributes:
        genes: Canonical genes of the base model.
        strategy: One Scaling per scaling stage.
    """

    genes: tuple[int, ...]
    strategy: Strategy


@dataclass(frozen=True)
class Candidate:
    """A base model with its fitness under a strategy.

    Attributes:
        genotype: Canonical.
        strategy: One Scaling per scaling stage.
        fitness: Weighted mean of the scores over the scaling stages.
        cost: Cost of the base model, in units of the budget; a float for latencies.
    """

    genotype: Genotype
    strategy: Strategy
    fitness: Fraction
    cost: float

    @property
    def order(self) -> tuple[Fraction, float, tuple[int, ...], list[tuple[float, ...]]]:
        """Sorts the best first: higher fitness, then lower cost, then smaller genes."""
        scalings = [(s.depth, s.width, s.resolution) for s in self.strategy]
        return -self.fitness, self.cost, self.genotype.genes, scalings

    @property
    def proposal(self) -> Proposal:
        """The family without its fitness."""
        return Proposal(self.genotype.genes, self.strategy)


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
        self._networks: dict[tuple[tuple[int, ...], Scaling], Arch] = {}
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
    def num_unscored(self) -> int:
        """Scaling stages of weight 0: they are scored in the result alone."""
        return len(self.weights) - len(self.scored_stages)

    @property
    def scored_stages(self) -> tuple[int, ...]:
        """Scaling stages whose weight is above 0."""
        return tuple(j for j, weight in enumerate(self.weights) if weight)

    def mean(self, scores: Sequence[Score]) -> Fraction:
        """Weighted mean of the scores of :attr:`scored_stages`."""
        weights = [self.weights[j] for j in self.scored_stages]
        total = sum(w * score.value for w, score in zip(weights, scores, strict=True))
        return Fraction(total, sum(weights))

    def archs(self, proposal: Proposal) -> list[Arch]:
        """The networks of a family that the fitness counts, by scaling stage."""
        return [self.network(proposal.genes, proposal.strategy[j]) for j in self.scored_stages]

    def network(self, genes: tuple[int, ...], scaling: Scaling) -> Arch:
        """What a scaling makes of a base model; those looked at last are kept."""
        key = genes, scaling
        if key not in self._networks:
            if len(self._networks) == _MOST_NETWORKS:
                del self._networks[next(iter(self._networks))]
            row = np.array(genes, dtype=np.int64)
            self._networks[key] = self.space.decode(row, scaling)
        return self._networks[key]

    def candidates(
        self, record: Record, proposals: Sequence[Proposal], least: Fraction | None = None
    ) -> Steps[list[Candidate]]:
        """Scores families.

        Args:
            record: What is known.
            proposals: The families.
            least: Those whose fitness is below it may be dropped, as soon as that is certain; by
                default none.

        Returns:
            The candidates, in the order of the proposals, without those of which a network cannot
            be scored.

        Raises:
            ValueError: A family does not meet the budgets, or most networks cannot be scored.
        """
        for proposal in proposals:
            row = np.array([proposal.genes], dtype=np.int64)
            if not self.feasibility.feasible(row, proposal.strategy)[0]:
                raise UsageError('a base model that does not meet the budgets must not be scored')
        if least is not None:
            proposals = yield from self._without_losers(proposals, least)
        families = [self.archs(proposal) for proposal in proposals]
        scores = yield Batch([arch for archs in families for arch in archs])
        stages, candidates = len(self.scored_stages), []
        for i, proposal in enumerate(proposals):
            own = scores[i * stages : (i + 1) * stages]
            if None not in own:
                candidates.append(self.candidate(proposal, own))
        return candidates

    def candidate(self, proposal: Proposal, scores: Sequence[Score]) -> Candidate:
        """A family whose scores are known."""
        genes = np.array([proposal.genes], dtype=np.int64)
        cost = self.feasibility.cost(genes)[0].item()
        genotype = self.space.genotype(genes[0])
        return Candidate(genotype, proposal.strategy, self.mean(scores), cost)

    def _without_losers(
        self, proposals: Sequence[Proposal], least: Fraction
    ) -> Steps[list[Proposal]]:
        """Scores families scaling stage by scaling stage; leaves out who cannot reach `least`.

        What the later scaling stages may add at most bounds the fitness, so the last one, which
        costs the most, has the tightest bound.
        """
        left = [(proposal, Fraction(0)) for proposal in proposals]
        open_weight = sum(self.weights)
        wanted = least * open_weight
        for place, j in enumerate(self.scored_stages):
            weight = self.weights[j]
            open_weight -= weight
            archs = [self.archs(proposal)[place] for proposal, _ in left]
            needed = [(wanted - done - open_weight) / weight for _, done in left]
            scores = yield Batch(archs, needed)
            left = [
                (proposal, done + weight * score.value)
                for (proposal, done), score in zip(left, scores, strict=True)
                if score is not None
            ]
        return [proposal for proposal, _ in left]
