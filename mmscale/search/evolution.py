"""Evolution of the base model under a fixed scaling strategy."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from mmscale.arch.checks import integer, number
from mmscale.arch.space import Genes
from mmscale.errors import UsageError
from mmscale.search.family import Candidate, FamilyFitness
from mmscale.search.feasibility import Strategy
from mmscale.search.operators import crossover, mutate, take_new, tournament
from mmscale.search.result import Generation, OnStep
from mmscale.search.schedule import checked_halving
from mmscale.search.scoring import Scorer

_TOURNAMENT = 2
_ATTEMPTS = 8


@dataclass(frozen=True)
class Evolved:
    """Outcome of a base evolution.

    Attributes:
        population: Survivors, the best first.
        history: Best fitness after every generation; shorter than the schedule if no new
            feasible base model could be found.
    """

    population: tuple[Candidate, ...]
    history: tuple[Fraction, ...]


class BaseEvolution:
    """(mu + lambda) evolution with lambda equal to mu, over canonical, feasible base models.

    Every child is new to the evolution: it comes from two tournament winners by two-point
    crossover and mutation; what does not meet the budgets is repaired or dropped, never scored;
    what is missing then is drawn at random. If nothing new is found the evolution ends early.

    Args:
        family: Scores base models under a strategy.
        population: Number of survivors and of children of a generation, at least 2.
        generations: Number of generations, the initial population included, at least 1.
        mutations: Expected number of gene changes of a child.
        halving: Whether to stop evaluating a child once it certainly cannot survive; who
            survives is the same.

    Raises:
        ValueError: A setting is not allowed.
    """

    def __init__(
        self,
        family: FamilyFitness,
        population: int = 64,
        generations: int = 40,
        mutations: float = 1.0,
        halving: bool = False,
    ) -> None:
        integer('population', population, 2)
        integer('generations', generations, 1)
        number('mutations', mutations, above=0)
        self.family = family
        self.population = population
        self.generations = generations
        self.mutations = mutations
        self.halving = checked_halving(halving)

    def run(
        self,
        scorer: Scorer,
        strategy: Strategy,
        rng: np.random.Generator,
        elites: Genes | None = None,
        title: str = 'base evolution',
        round_number: int = 1,
        on_step: OnStep | None = None,
    ) -> Evolved:
        """Evolves base models under a strategy.

        Args:
            scorer: Scores Archs.
            strategy: One Scaling per scaling stage.
            rng: Source of randomness.
            elites: Genotypes of the first population, shape (n, genes), the best first; those
                that do not meet the budgets of this strategy are left out.
            title: What progress reports and generations call this evolution.
            round_number: The round it belongs to.
            on_step: Called with every generation.

        Raises:
            ValueError: No base model was found that meets the budgets, or none can be scored.
        """
        feasibility, space = self.family.feasibility, self.family.space
        seen: set[bytes] = set()
        genes = np.empty((0, space.num_genes), dtype=np.int64)
        if elites is not None and len(elites):
            elites = space.canonicalise(elites)
            elites = elites[feasibility.feasible(elites, strategy)]
            genes = take_new(elites, seen, self.population)
        fresh = feasibility.draw(rng, self.population - len(genes), strategy, seen)
        genes = np.concatenate([genes, fresh])
        if not len(genes):
            raise UsageError(feasibility.explain_empty(strategy, rng))
        survivors: list[Candidate] = []
        history: list[Fraction] = []
        for generation in range(self.generations):
            if generation:
                genes = self._children(survivors, strategy, rng, seen)
            if not len(genes):
                break
            scorer.step = f'{title}, generation {generation + 1} of {self.generations}'
            # An equal fitness may still survive by its cost or its genes.
            full = len(survivors) == self.population
            least = survivors[-1].fitness if self.halving and full else None
            survivors += self.family.candidates(scorer, genes, strategy, least)
            survivors = sorted(survivors, key=lambda c: c.order)[: self.population]
            if not survivors:
                raise UsageError(f'{scorer.step}: {scorer.explain_failures()}')
            history.append(survivors[0].fitness)
            scorer.best = survivors[0].fitness
            if on_step is not None:
                population = tuple((c.cost, c.fitness) for c in survivors)
                number = generation + 1
                on_step(Generation(title, round_number, number, scorer.evaluations, population))
        return Evolved(tuple(survivors), tuple(history))

    def _children(
        self,
        parents: list[Candidate],
        strategy: Strategy,
        rng: np.random.Generator,
        seen: set[bytes],
    ) -> Genes:
        feasibility, space = self.family.feasibility, self.family.space
        pool = np.array([parent.genotype.genes for parent in parents], dtype=np.int64)
        children = np.empty((0, space.num_genes), dtype=np.int64)
        for _ in range(_ATTEMPTS):
            missing = self.population - len(children)
            if not missing:
                return children
            first = pool[tournament(len(pool), missing, _TOURNAMENT, rng)]
            second = pool[tournament(len(pool), missing, _TOURNAMENT, rng)]
            offspring = crossover(space, first, second, rng)
            offspring = mutate(space, offspring, rng, self.mutations)
            offspring = feasibility.repair(offspring, strategy, rng)
            children = np.concatenate([children, take_new(offspring, seen, missing)])
        missing = self.population - len(children)
        return np.concatenate([children, feasibility.draw(rng, missing, strategy, seen)])
