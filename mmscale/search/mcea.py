"""Markov-chain evolution (MCEA): base model and scaling strategy, turn by turn."""

from __future__ import annotations

from itertools import count

import numpy as np

from mmscale.arch.checks import integer
from mmscale.search.chain import Chain
from mmscale.search.evolution import BaseEvolution, Round
from mmscale.search.family import Candidate, FamilyFitness, Proposal
from mmscale.search.preselection import Preselection
from mmscale.search.record import Record
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

# After so many rounds in a row without anything new to score there is taken to be nothing.
_MOST_DRY = 3


class MCEA:
    """Markov-chain evolution of (base model, scaling strategy), ScaleNet's search.

    It starts from a strategy that was compared on one fixed set of base models. Then each round
    evolves the base model towards the strategy, from the survivors of the round before, and
    chooses the strategy anew for the best base model, the present one included. The strategy is a
    target: each base model takes the nearest scalings that are feasible for it. So the fitness of
    the state never falls, and no base model is lost when the strategy changes. Everything is
    determined by the settings, the seed and the scores. In a space with one scaling stage there is
    nothing but base evolutions, one per round.

    A surrogate predicts base models and scalings before they are scored, from the scores so far:
    many are proposed, few are scored, see :class:`BaseEvolution`. It chooses what is measured;
    what is found was measured.

    A round in which nothing new is found to score is noted in the chain, and the next one mutates
    more; after some of them in a row the search ends.

    Args:
        family: Scores base models under a strategy; holds the budgets and the weights.
        population: Base models of a generation.
        generations: Generations of each base evolution, the initial population included.
        rounds: Rounds of base evolution and scaling search; None for as many as there are
            evaluations for.
        num_base_models: Size of the fixed set of base models for the initial strategy; 0 for the
            strategy whose scalings most base models admit. Of limited `evaluations` they take half
            at most, so that they may be fewer.
        mutations: Expected number of gene changes of a child.
        halving: Whether to stop evaluating candidates that certainly lose; the outcome is the
            same, and the result says how many were dropped. Not beside `evaluations`.
        evaluations: Distinct Archs to score at most, besides those of scaling stages of weight 0
            in the result. What is not set of the schedule is then as
            :func:`mmscale.search.schedule.schedule_for` says, with rounds until they are used up.
            None: the schedule says when it ends, and what is not set is as in the released
            ScaleNet, 64, 40, 8 and 20.
        surrogate: Whether to predict candidates before they are scored; by default where
            `evaluations` is set.
        seed: Seed of all randomness.

    Raises:
        ValueError: A setting is not allowed.
    """

    def __init__(
        self,
        family: FamilyFitness,
        population: int | None = None,
        generations: int | None = None,
        rounds: int | None = None,
        num_base_models: int | None = None,
        mutations: float = 1.0,
        halving: bool = False,
        evaluations: int | None = None,
        surrogate: bool | None = None,
        seed: int = 0,
    ) -> None:
        integer('seed', seed, 0)
        self.family = family
        self.seed = seed
        self.evaluations = checked_evaluations(evaluations, len(family.scored_stages), halving)
        self.surrogate = uses_surrogate(surrogate, evaluations)
        best = RELEASED
        if evaluations is not None:
            best = schedule_for(evaluations, len(family.scored_stages), self.surrogate)
        population = best.population if population is None else population
        generations = best.generations if generations is None else generations
        bases = best.num_base_models if num_base_models is None else num_base_models
        self.rounds = best.rounds if rounds is None else integer('rounds', rounds, 1)
        self.evolution = BaseEvolution(
            family, population, generations, mutations, halving, is_target=True
        )
        self.strategy_search = StrategySearch(family, bases, halving)

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
            rounds=self.rounds,
            num_base_models=self.strategy_search.num_base_models,
        )

    def steps(self, record: Record, on_step: OnStep | None = None) -> Steps[SearchResult]:
        """Searches from the start; what the archive knows is not asked for again.

        Args:
            record: What is known.
            on_step: Called with every generation and every chain step.

        Raises:
            ValueError: The budgets leave no base model or no scaling; the message names the
                scaling stage, the tolerance and the nearest costs within reach.
        """
        evolution = self.evolution
        most = self.most_evaluations
        chain = Chain(self.family, record, self.seed, on_step, most, self.evaluations)
        is_scaled = self.family.is_scaled
        preselection = Preselection(record, self.seed) if self.surrogate else None
        promising = evolution.promising(record, preselection) if preselection else None
        record.step = 'initial strategy' if is_scaled else 'first networks'
        strategy = yield from self.strategy_search.initial(
            record, chain.rng(0, 'initial strategy')
        )
        if is_scaled:
            chain.add('initial strategy', 0, None, strategy)
        elites: tuple[Candidate, ...] = ()
        dry = 0
        for number in count(1):
            before = record.evaluations
            if self.rounds is not None and number > self.rounds:
                break
            if record.left < 1:
                break
            title = f'round {number}' + (f' of {self.rounds}' if self.rounds else '')
            own = Round(
                chain.rng(number, 'base evolution'),
                elites,
                promising,
                f'{title}, base evolution',
                number,
                evolution.mutations * 2**dry,
                on_step,
            )
            evolved = yield from evolution.steps(record, strategy, own)
            elites = evolved.population
            if not elites:
                break
            best = elites[0]
            chain.add('base evolution', number, best, best.strategy, evolved.history)
            if is_scaled:
                record.step = f'{title}, scaling search'
                strategy = yield from self.strategy_search.given_base(
                    record,
                    np.array(best.genotype.genes, dtype=np.int64),
                    best.strategy,
                    preselection,
                )
                best = yield from self.family.candidates(
                    record, [Proposal(best.genotype.genes, strategy)]
                )
                elites = (*best, *elites)
                chain.add('scaling search', number, best[0], strategy)
            dry = dry + 1 if record.evaluations == before else 0
            # With too few evaluations left for a family they are used up, not the space.
            if dry and record.left < len(self.family.scored_stages):
                break
            if dry:
                chain.add('nothing new', number, elites[0], elites[0].strategy)
            if dry == _MOST_DRY:
                break
        return (
            yield from chain.result(
                {
                    'population': evolution.population,
                    'generations': evolution.generations,
                    'rounds': self.rounds,
                    'num_base_models': self.strategy_search.num_base_models,
                    'mutations': evolution.mutations,
                    'halving': evolution.halving,
                    'evaluations': self.evaluations,
                    'surrogate': self.surrogate,
                },
                preselection,
                elites,
            )
        )

    def run(self, scorer: Scorer, on_step: OnStep | None = None) -> SearchResult:
        """Searches with a scorer, see :meth:`steps`."""
        return scorer.drive(self.steps(scorer, on_step))
