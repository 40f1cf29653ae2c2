"""Searches of one half of a family: the base model alone, or the strategy of a given one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mmscale.arch import Scaling
from mmscale.arch.checks import integer
from mmscale.errors import UsageError
from mmscale.search.chain import Chain
from mmscale.search.evolution import BaseEvolution, Round
from mmscale.search.family import FamilyFitness, Proposal
from mmscale.search.feasibility import Strategy
from mmscale.search.given_family import GivenBase, GivenStrategy, given_base, given_strategy
from mmscale.search.preselection import Preselection
from mmscale.search.record import Batch, Record
from mmscale.search.result import OnStep, SearchResult
from mmscale.search.schedule import (
    RELEASED,
    checked_evaluations,
    most_evaluations,
    schedule_for,
    uses_surrogate,
)
from mmscale.search.scoring import Scorer
from mmscale.search.searcher import Steps
from mmscale.search.strategy import StrategySearch


class EvolutionSearch:
    """Search of the base model for a given strategy, or of the base model alone.

    Args:
        family: As for :class:`MCEA`.
        strategy: One Scaling per scaling stage of the space, or ``dict(depth=, width=,
            resolution=)``; the first must be (1, 1, 1). None is plain evolution at one budget:
            scaling stage 0 alone counts, whatever the weights.
        population: As for :class:`MCEA`.
        generations: As for :class:`MCEA`.
        mutations: As for :class:`MCEA`.
        halving: As for :class:`MCEA`.
        evaluations: As for :class:`MCEA`.
        surrogate: As for :class:`MCEA`.
        seed: As for :class:`MCEA`.

    Raises:
        ValueError: A setting is not allowed.
    """

    def __init__(
        self,
        family: FamilyFitness,
        strategy: GivenStrategy | None = None,
        population: int | None = None,
        generations: int | None = None,
        mutations: float = 1.0,
        halving: bool = False,
        evaluations: int | None = None,
        surrogate: bool | None = None,
        seed: int = 0,
    ) -> None:
        integer('seed', seed, 0)
        self.strategy = (Scaling(),)
        if strategy is not None:
            self.strategy = given_strategy(family.space, strategy)
            if self.strategy[0] != Scaling():
                raise UsageError(f'strategy[0]={self.strategy[0]} must be {Scaling()}')
        self.family = family.alone(0) if strategy is None else family
        self.seed = seed
        stages = len(self.family.scored_stages)
        self.evaluations = checked_evaluations(evaluations, stages, halving)
        self.surrogate = uses_surrogate(surrogate, evaluations)
        best = RELEASED
        if evaluations is not None:
            best = schedule_for(evaluations, stages, self.surrogate)
            # One evolution goes on until the evaluations are used up.
            best = replace(best, generations=evaluations)
        population = best.population if population is None else population
        generations = best.generations if generations is None else generations
        self.evolution = BaseEvolution(self.family, population, generations, mutations, halving)

    @property
    def most_evaluations(self) -> int:
        """Upper bound of the distinct Archs that :meth:`run` evaluates."""
        if self.evaluations is not None:
            return self.evaluations + self.family.num_unscored
        return most_evaluations(
            self.family.feasibility,
            self.family.scored_stages,
            population=self.evolution.population,
            generations=self.evolution.generations,
            scaling_searches=0,
        )

    def steps(self, record: Record, on_step: OnStep | None = None) -> Steps[SearchResult]:
        """Evolves base models under the strategy.

        Args:
            record: What is known.
            on_step: Called with every generation and with the chain's only step.

        Raises:
            ValueError: No base model was found that meets the budgets.
        """
        evolution = self.evolution
        most = self.most_evaluations
        chain = Chain(self.family, record, self.seed, on_step, most, self.evaluations)
        preselection = Preselection(record, self.seed) if self.surrogate else None
        promising = evolution.promising(record, preselection) if preselection else None
        own = Round(chain.rng(1, 'base evolution'), promising=promising, on_step=on_step)
        evolved = yield from evolution.steps(record, self.strategy, own)
        best = evolved.population[0]
        chain.add('base evolution', 1, best, self.strategy, evolved.history)
        return (
            yield from chain.result(
                {
                    'population': evolution.population,
                    'generations': evolution.generations,
                    'mutations': evolution.mutations,
                    'halving': evolution.halving,
                    'evaluations': self.evaluations,
                    'surrogate': self.surrogate,
                },
                preselection,
                evolved.population,
            )
        )

    def run(self, scorer: Scorer, on_step: OnStep | None = None) -> SearchResult:
        """Searches with a scorer, see :meth:`steps`."""
        return scorer.drive(self.steps(scorer, on_step))


class ScalingSearch:
    """Search of the strategy for a given base model: all distinct feasible scalings are scored.

    With `evaluations` they are as many as these allow: some of every scaling stage first, then
    those that a surrogate predicts to be the best, again and again.

    Args:
        family: As for :class:`MCEA`.
        base: The base model: a Genotype, its genes, or an Arch as :func:`mmscale.get_arch` finds
            it.
        halving: As for :class:`MCEA`.
        evaluations: As for :class:`MCEA`.
        surrogate: As for :class:`MCEA`.
        seed: Of the surrogate.

    Raises:
        ValueError: The base model does not meet the base budget, or the space has one scaling
            stage.
    """

    def __init__(
        self,
        family: FamilyFitness,
        base: GivenBase,
        halving: bool = False,
        evaluations: int | None = None,
        surrogate: bool | None = None,
        seed: int = 0,
    ) -> None:
        integer('seed', seed, 0)
        if not family.is_scaled:
            raise UsageError(
                'search.type: ScalingSearch has nothing to search in a space with one scaling '
                'stage; space.scaling_stages must be 2 or more'
            )
        self.family = family
        self.base = given_base(family.space, base)
        self.strategy_search = StrategySearch(family, halving=halving)
        self.evaluations = checked_evaluations(evaluations, len(family.scored_stages), halving)
        self.surrogate = uses_surrogate(surrogate, evaluations)
        if self.surrogate and evaluations is None:
            raise UsageError('surrogate=True: all scalings are scored unless evaluations are set')
        self.seed = seed
        row = np.array([self.base.genes], dtype=np.int64)
        feasibility = family.feasibility
        if not feasibility.base_feasible(row)[0]:
            raise UsageError(feasibility.explain_base(row))

    @property
    def most_evaluations(self) -> int:
        """Upper bound of the distinct Archs that :meth:`run` evaluates."""
        most = most_evaluations(self.family.feasibility, self.family.scored_stages)
        if self.evaluations is None:
            return most
        return min(most, self.evaluations + self.family.num_unscored)

    def steps(self, record: Record, on_step: OnStep | None = None) -> Steps[SearchResult]:
        """Scores the scalings of every scaling stage and takes the best of each.

        Args:
            record: What is known.
            on_step: Called with the chain's only step.

        Raises:
            ValueError: A scaling stage has no feasible scaling of the base model.
        """
        most, seed = self.most_evaluations, self.seed if self.surrogate else None
        chain = Chain(self.family, record, seed, on_step, most, self.evaluations)
        preselection = Preselection(record, self.seed) if self.surrogate else None
        record.step = 'scaling search'
        genes = np.array(self.base.genes, dtype=np.int64)
        if 0 in self.family.scored_stages:
            yield Batch([self.family.network(self.base.genes, Scaling())])
        strategy: Strategy | None = None
        while True:
            before = record.evaluations
            strategy = yield from self.strategy_search.given_base(
                record, genes, strategy, preselection
            )
            if preselection is None or record.evaluations == before or record.left < 1:
                break
        proposal = Proposal(self.base.genes, strategy)
        (best,) = yield from self.family.candidates(record, [proposal])
        chain.add('scaling search', 1, best, strategy)
        settings = {'halving': self.strategy_search.halving}
        if self.evaluations is not None:
            settings |= {'evaluations': self.evaluations, 'surrogate': self.surrogate}
        return (yield from chain.result(settings, preselection))

    def run(self, scorer: Scorer, on_step: OnStep | None = None) -> SearchResult:
        """Searches with a scorer, see :meth:`steps`."""
        return scorer.drive(self.steps(scorer, on_step))
