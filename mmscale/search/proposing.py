"""What an evolution may score: base models within the budgets, drawn and bred."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmscale.arch import Scaling
from mmscale.arch.genes import Genes
from mmscale.search.family import FamilyFitness, Proposal
from mmscale.search.feasibility import Strategy
from mmscale.search.operators import crossover, mutate, take_new, tournament
from mmscale.search.targets import draw_scalable, nearest

_TOURNAMENT = 2
_ATTEMPTS = 8


class Proposer:
    """Draws and breeds families that meet the budgets.

    Args:
        family: Holds the budgets.
        is_target: Whether a strategy is a target, to which each base model takes the nearest
            scalings that are feasible for it; else it must be feasible as it is.
    """

    def __init__(self, family: FamilyFitness, is_target: bool) -> None:
        self.family = family
        self.is_target = is_target

    def scaled(self, genes: Genes, strategy: Strategy) -> list[Proposal]:
        """Base models with their scalings; without those that do not meet the budgets."""
        feasibility = self.family.feasibility
        if self.is_target:
            genes = genes[feasibility.base_feasible(genes)]
            strategies = nearest(feasibility, genes, strategy)
        else:
            genes = genes[feasibility.feasible(genes, strategy)]
            strategies = [strategy] * len(genes)
        return [
            Proposal(tuple(row.tolist()), own)
            for row, own in zip(genes, strategies, strict=True)
            if own is not None
        ]

    def drawn(
        self, limit: int, strategy: Strategy, rng: np.random.Generator, seen: set[bytes]
    ) -> list[Proposal]:
        """Random ones.

        Args:
            limit: Largest number.
            strategy: One Scaling per scaling stage.
            rng: Source of randomness.
            seen: Bytes of genotypes that are not drawn; what is drawn is added.
        """
        feasibility = self.family.feasibility
        if self.is_target:
            genes = draw_scalable(feasibility, rng, limit, seen)
        else:
            genes = feasibility.draw(rng, limit, strategy, seen)
        return self.scaled(genes, strategy)

    def bred(
        self,
        parents: Sequence[Proposal],
        limit: int,
        strategy: Strategy,
        rng: np.random.Generator,
        seen: set[bytes],
        mutations: float,
        repairs: bool = True,
    ) -> list[Proposal]:
        """Children of tournament winners, by two-point crossover and mutation.

        Args:
            parents: The best first.
            limit: Largest number.
            strategy: One Scaling per scaling stage.
            rng: Source of randomness.
            seen: Bytes of genotypes that are not bred; what is bred is added.
            mutations: Expected number of gene changes of a child.
            repairs: Whether a child that misses the budgets is repaired; else it is dropped.
        """
        feasibility, space = self.family.feasibility, self.family.space
        budgets = (Scaling(),) if self.is_target else strategy
        pool = np.array([parent.genes for parent in parents], dtype=np.int64)
        children: list[Proposal] = []
        for _ in range(_ATTEMPTS):
            missing = limit - len(children)
            if not missing:
                break
            first = pool[tournament(len(pool), missing, _TOURNAMENT, rng)]
            second = pool[tournament(len(pool), missing, _TOURNAMENT, rng)]
            offspring = crossover(space, first, second, rng)
            offspring = mutate(space, offspring, rng, mutations)
            if repairs:
                offspring = feasibility.repair(offspring, budgets, rng)
            else:
                offspring = offspring[feasibility.feasible(offspring, budgets)]
            children += self.scaled(take_new(offspring, seen, missing), strategy)
        return children

    def children(
        self,
        parents: Sequence[Proposal],
        limit: int,
        strategy: Strategy,
        rng: np.random.Generator,
        seen: set[bytes],
        mutations: float,
    ) -> list[Proposal]:
        """Bred ones, and random ones where too few are bred; arguments as for :meth:`bred`."""
        found: list[Proposal] = []
        if parents:
            found = self.bred(parents, limit, strategy, rng, seen, mutations)
        return found + self.drawn(limit - len(found), strategy, rng, seen)

    def explain_nothing(self, number: int, strategy: Strategy, rng: np.random.Generator) -> str:
        """Why there is nothing to propose: the scaling stage, and the nearest costs in reach."""
        feasibility = self.family.feasibility
        if not self.is_target:
            return feasibility.explain_empty(strategy, rng)
        pool = feasibility.draw(rng, _ATTEMPTS * number)
        if not len(pool):
            return feasibility.explain_empty((Scaling(),), rng)
        return feasibility.explain_unscalable(pool)
