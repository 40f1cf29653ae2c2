"""The chain of states that a search goes through, and the result at its end."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from mmscale.search.family import Candidate, FamilyFitness
from mmscale.search.feasibility import Strategy
from mmscale.search.preselection import Preselection
from mmscale.search.record import Batch, Record
from mmscale.search.result import ChainStep, FamilyMember, OnStep, SearchResult
from mmscale.search.searcher import Steps
from mmscale.search.varied import varied

# Families beside the best that a result names.
_RUNNERS_UP = 10
_PHASES = ('initial strategy', 'base evolution', 'scaling search', 'random families')


class Chain:
    """The states a search went through, the present one, and what is derived from (seed, step)."""

    def __init__(
        self,
        family: FamilyFitness,
        record: Record,
        seed: int | None,
        on_step: OnStep | None,
        most_evaluations: int,
        limit: int | None = None,
    ) -> None:
        self.family = family
        self.record = record
        self.seed = seed
        self.on_step = on_step
        self.steps: list[ChainStep] = []
        self.fitness: Fraction | None = None
        self._state: Candidate | None = None
        record.best = None
        record.most_evaluations = most_evaluations
        record.limit = limit

    def rng(self, round_number: int, phase: str) -> np.random.Generator:
        """A generator of its own for every phase of every round."""
        return np.random.default_rng([self.seed or 0, round_number, _PHASES.index(phase)])

    def add(
        self,
        kind: str,
        round_number: int,
        state: Candidate | None,
        strategy: Strategy,
        history: tuple[Fraction, ...] = (),
    ) -> None:
        """Appends a step. The state's fitness never falls."""
        base = fitness = cost = None
        if state is not None:
            base, fitness, cost = state.genotype, state.fitness, state.cost
            assert self.fitness is None or fitness >= self.fitness, 'the chain got worse'
            self.fitness = self.record.best = fitness
            self._state = state
        evaluations = self.record.evaluations
        step = ChainStep(kind, round_number, base, strategy, fitness, cost, evaluations, history)
        self.steps.append(step)
        if self.on_step is not None:
            self.on_step(step)

    def result(
        self,
        settings: dict[str, object],
        preselection: Preselection | None = None,
        candidates: Sequence[Candidate] = (),
    ) -> Steps[SearchResult]:
        """The last state, with a score for every scaling stage.

        Args:
            settings: Of the search.
            preselection: What predicted its candidates, if anything did.
            candidates: The best that it has scored, the best first; the last state may be among
                them.

        Raises:
            RuntimeError: No base model was chosen yet.
        """
        family, record, last = self.family, self.record, self.steps[-1]
        if last.base is None or last.fitness is None:
            raise RuntimeError('the chain has no base model yet')
        record.step = 'result'
        archs = [family.space.decode(last.base, scaling) for scaling in last.strategy]
        scores = yield Batch(archs)
        table = family.feasibility.table
        details = {'dropped': len(record.dropped)} if settings.get('halving') else {}
        if preselection is not None:
            details |= preselection.details()
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
            evaluations=record.evaluations,
            failed=len(record.failed),
            seed=self.seed,
            settings={**family.settings, **settings},
            details=details,
            varied=varied(family.space),
            runners_up=tuple(one for one in candidates if one != self._state)[:_RUNNERS_UP],
        )
