"""The searches: Markov-chain evolution (MCEA), base evolution alone, scaling search alone."""

from __future__ import annotations

import numpy as np

from mmscale.arch import Scaling
from mmscale.arch.checks import integer
from mmscale.errors import UsageError
from mmscale.search.chain import Chain
from mmscale.search.evolution import BaseEvolution
from mmscale.search.family import FamilyFitness
from mmscale.search.given_family import GivenBase, GivenStrategy, given_base, given_strategy
from mmscale.search.result import OnStep, SearchResult
from mmscale.search.schedule import most_evaluations
from mmscale.search.scoring import Scorer
from mmscale.search.strategy import StrategySearch


class MCEA:
    """Markov-chain evolution of (base model, scaling strategy), ScaleNet's search.

    It starts from a strategy that was compared on one fixed set of base models. Then each round
    evolves the base model under the strategy, from the survivors of the round before, and
    chooses the strategy anew for the best base model, the present one included. So the fitness
    of the state never falls. Everything is determined by the settings, the seed and the scores.
    In a space with one scaling stage there is nothing but base evolutions, one per round.

    Args:
        family: Scores base models under a strategy; holds the budgets and the weights.
        population: Base models of a generation, at least 2.
        generations: Generations of each base evolution, the initial population included.
        rounds: Rounds of base evolution and scaling search.
        num_base_models: Size of the fixed set of base models for the initial strategy.
        mutations: Expected number of gene changes of a child.
        halving: Whether to stop evaluating candidates that certainly lose; the outcome is the
            same, and the result says how many were dropped.
        seed: Seed of all randomness.

    Raises:
        ValueError: A setting is not allowed.
    """

    def __init__(
        self,
        family: FamilyFitness,
        population: int = 64,
        generations: int = 40,
        rounds: int = 8,
        num_base_models: int = 20,
        mutations: float = 1.0,
        halving: bool = False,
        seed: int = 0,
    ) -> None:
        integer('rounds', rounds, 1)
        integer('seed', seed, 0)
        self.family = family
        self.rounds = rounds
        self.seed = seed
        self.evolution = BaseEvolution(family, population, generations, mutations, halving)
        self.strategy_search = StrategySearch(family, num_base_models, halving)

    @property
    def most_evaluations(self) -> int:
        """Upper bound of the distinct Archs that :meth:`run` evaluates."""
        return most_evaluations(
            self.family.feasibility,
            self.family.scored_stages,
            population=self.evolution.population,
            generations=self.evolution.generations,
            rounds=self.rounds,
            num_base_models=self.strategy_search.num_base_models,
        )

    def run(self, scorer: Scorer, on_step: OnStep | None = None) -> SearchResult:
        """Searches from the start; what the archive knows is not evaluated again.

        Args:
            scorer: Scores Archs.
            on_step: Called with every generation and every chain step.

        Raises:
            ValueError: The budgets leave no base model or no scaling; the message names the
                scaling stage, the tolerance and the nearest costs within reach.
        """
        evolution = self.evolution
        chain = Chain(self.family, scorer, self.seed, on_step, self.most_evaluations)
        is_scaled = self.family.is_scaled
        scorer.step = 'initial strategy' if is_scaled else 'first networks'
        start = self.strategy_search.initial(
            scorer, chain.rng(0, 'initial strategy'), evolution.population
        )
        strategy, elites = start.strategy, start.base_models
        if is_scaled:
            chain.record('initial strategy', 0, None, strategy)
        for number in range(1, self.rounds + 1):
            title = f'round {number} of {self.rounds}'
            rng = chain.rng(number, 'base evolution')
            evolved = evolution.run(
                scorer, strategy, rng, elites, f'{title}, base evolution', number, on_step
            )
            elites = np.array([c.genotype.genes for c in evolved.population], dtype=np.int64)
            base = evolved.population[0].genotype
            chain.record('base evolution', number, base, strategy, evolved.history)
            if is_scaled:
                scorer.step = f'{title}, scaling search'
                strategy = self.strategy_search.given_base(scorer, elites[0], strategy)
                chain.record('scaling search', number, base, strategy)
        return chain.result(
            {
                'population': evolution.population,
                'generations': evolution.generations,
                'rounds': self.rounds,
                'num_base_models': self.strategy_search.num_base_models,
                'mutations': evolution.mutations,
                'halving': evolution.halving,
            }
        )


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
        seed: As for :class:`MCEA`.

    Raises:
        ValueError: A setting is not allowed.
    """

    def __init__(
        self,
        family: FamilyFitness,
        strategy: GivenStrategy | None = None,
        population: int = 64,
        generations: int = 40,
        mutations: float = 1.0,
        halving: bool = False,
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
        self.evolution = BaseEvolution(self.family, population, generations, mutations, halving)

    @property
    def most_evaluations(self) -> int:
        """Upper bound of the distinct Archs that :meth:`run` evaluates."""
        return most_evaluations(
            self.family.feasibility,
            self.family.scored_stages,
            population=self.evolution.population,
            generations=self.evolution.generations,
            scaling_searches=0,
        )

    def run(self, scorer: Scorer, on_step: OnStep | None = None) -> SearchResult:
        """Evolves base models under the strategy.

        Args:
            scorer: Scores Archs.
            on_step: Called with every generation and with the chain's only step.

        Raises:
            ValueError: No base model was found that meets the budgets.
        """
        evolution = self.evolution
        chain = Chain(self.family, scorer, self.seed, on_step, self.most_evaluations)
        rng = chain.rng(1, 'base evolution')
        evolved = evolution.run(scorer, self.strategy, rng, on_step=on_step)
        base = evolved.population[0].genotype
        chain.record('base evolution', 1, base, self.strategy, evolved.history)
        return chain.result(
            {
                'population': evolution.population,
                'generations': evolution.generations,
                'mutations': evolution.mutations,
                'halving': evolution.halving,
            }
        )


class ScalingSearch:
    """Search of the strategy for a given base model: all distinct feasible scalings are scored.

    Args:
        family: As for :class:`MCEA`.
        base: The base model: a Genotype, its genes, or an Arch as :func:`mmscale.get_arch` finds
            it.
        halving: As for :class:`MCEA`.

    Raises:
        ValueError: The base model does not meet the base budget, or the space has one scaling
            stage.
    """

    def __init__(
        self,
        family: FamilyFitness,
        base: GivenBase,
        halving: bool = False,
    ) -> None:
        if not family.is_scaled:
            raise UsageError(
                'search.type: ScalingSearch has nothing to search in a space with one scaling '
                'stage; space.scaling_stages must be 2 or more'
            )
        self.family = family
        self.base = given_base(family.space, base)
        self.strategy_search = StrategySearch(family, halving=halving)
        row = np.array([self.base.genes], dtype=np.int64)
        feasibility = family.feasibility
        if not feasibility.base_feasible(row)[0]:
            raise UsageError(
                f'base has {feasibility.cost(row)[0]:,} {feasibility.metric}, not '
                f'{feasibility.budget:,} within a tolerance of {feasibility.tolerance:.3g}'
            )

    @property
    def most_evaluations(self) -> int:
        """Upper bound of the distinct Archs that :meth:`run` evaluates."""
        return most_evaluations(self.family.feasibility, self.family.scored_stages)

    def run(self, scorer: Scorer, on_step: OnStep | None = None) -> SearchResult:
        """Scores the scalings of every scaling stage and takes the best of each.

        Args:
            scorer: Scores Archs.
            on_step: Called with the chain's only step.

        Raises:
            ValueError: A scaling stage has no feasible scaling of the base model.
        """
        chain = Chain(self.family, scorer, None, on_step, self.most_evaluations)
        scorer.step = 'scaling search'
        genes = np.array(self.base.genes, dtype=np.int64)
        strategy = self.strategy_search.given_base(scorer, genes)
        chain.record('scaling search', 1, self.base, strategy)
        return chain.result({'halving': self.strategy_search.halving})
