"""The chain of states that a search goes through, and the result at its end."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from mmscale.arch import Genotype
from mmscale.search.family import FamilyFitness
from mmscale.search.feasibility import Strategy
from mmscale.search.result import ChainStep, FamilyMember, OnStep, SearchResult
from mmscale.search.scoring import Scorer
from mmscale.search.varied import varied

_PHASES = ('initial strategy', 'base evolution', 'scaling search', 'random families')


class Chain:
    """The states a search went through, the present one, and what is derived from (seed, step)."""

    def __init__(
        self,
        family: FamilyFitness,
        scorer: Scorer,
        seed: int | None,
        on_step: OnStep | None,
        most_evaluations: int,
    ) -> None:
        self.family = family
        self.scorer = scorer
        self.seed = seed
        self.on_step = on_step
        self.steps: list[ChainStep] = []
        self.fitness: Fraction | None = None
        scorer.best = None
        scorer.most_evaluations = most_evaluations

    def rng(self, round_number: int, phase: str) -> np.random.Generator:
        """A generator of its own for every phase of every round."""
        return np.random.default_rng([self.seed or 0, round_number, _PHASES.index(phase)])

    def record(
        self,
        kind: str,
        round_number: int,
        base: Genotype | None,
        strategy: Strategy,
        history: tuple[Fraction, ...] = (),
    ) -> None:
        """Appends a step. The state's fitness never falls."""
        fitness, cost = None, None
        if base is not None:
            row = np.array([base.genes], dtype=np.int64)
            candidate = self.family.candidates(self.scorer, row, strategy)[0]
            fitness, cost = candidate.fitness, candidate.cost
            assert self.fitness is None or fitness >= self.fitness, 'the chain got worse'
            self.fitness = fitness
            self.scorer.best = fitness
        evaluations = self.scorer.evaluations
        step = ChainStep(kind, round_number, base, strategy, fitness, cost, evaluations, history)
        self.steps.append(step)
        if self.on_step is not None:
            self.on_step(step)

    def result(self, settings: dict[str, object]) -> SearchResult:
        """The last state, with a score for every scaling stage.

        Raises:
            RuntimeError: No base model was chosen yet.
        """
        family, scorer, last = self.family, self.scorer, self.steps[-1]
        if last.base is None or last.fitness is None:
            raise RuntimeError('the chain has no base model yet')
        scorer.step = 'result'
        archs = [family.space.decode(last.base, scaling) for scaling in last.strategy]
        scores = scorer.score(archs)
        table = family.feasibility.table
        return SearchResult(
            base=last.base,
            family=tuple(
                FamilyMember(j, last.base, scaling, arch, table.cost(arch), score)
                for j, (scaling, arch, score) in enumerate(
                    zip(last.strategy, archs, scores, strict=True)
                )
            ),
            fitness=last.fitness,
            chain=tuple(self.steps),
            evaluations=scorer.evaluations,
            failed=len(scorer.failed),
            seed=self.seed,
            settings={**family.settings, **settings},
            details={'dropped': len(scorer.dropped)} if settings.get('halving') else {},
            varied=varied(family.space),
        )
