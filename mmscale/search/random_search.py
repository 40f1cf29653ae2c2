"""Random search: the baseline that every other search has to beat at equal evaluations."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np

from mmscale.arch import Scaling
from mmscale.arch.checks import integer
from mmscale.errors import UsageError
from mmscale.search.chain import Chain
from mmscale.search.family import Candidate, FamilyFitness, Proposal
from mmscale.search.record import Record
from mmscale.search.result import OnStep, SearchResult
from mmscale.search.scoring import Scorer
from mmscale.search.searcher import Steps

# Base models drawn at a time.
_POOL = 512
_FAMILIES_AT_ONCE = 8
# Pools in a row without a family after which there is taken to be no further one: a space may
# hold more base models than could ever be tried.
_FRUITLESS_POOLS = 8


class RandomSearch:
    """Draws families, a base model and a feasible scaling per scaling stage, and keeps the best.

    In a space with one scaling stage these are networks alone.

    Args:
        family: Scores base models under a strategy.
        evaluations: Distinct Archs to evaluate at most, besides those of scaling stages of
            weight 0 in the result.
        seed: Seed of all randomness.

    Raises:
        ValueError: A setting is not allowed.
    """

    def __init__(
        self,
        family: FamilyFitness,
        evaluations: int,
        seed: int = 0,
    ) -> None:
        integer('seed', seed, 0)
        integer('evaluations', evaluations, len(family.scored_stages))
        self.family = family
        self.evaluations = evaluations
        self.seed = seed

    @property
    def most_evaluations(self) -> int:
        """Upper bound of the distinct Archs that :meth:`run` evaluates."""
        return self.evaluations + self.family.num_unscored

    def _families(self, rng: np.random.Generator) -> Iterator[Proposal]:
        """Random base models, none twice, with a random feasible scaling per scaling stage."""
        feasibility = self.family.feasibility
        stages = range(1, len(self.family.space.scaling_stages))
        scalings = [feasibility.distinct_scalings(j) for j in stages]
        seen: set[bytes] = set()
        fruitless = 0
        while fruitless < _FRUITLESS_POOLS:
            pool = rng.permutation(feasibility.draw(rng, _POOL, seen=seen))
            if not len(pool):
                return
            fruitless += 1
            admitted = [feasibility.admitted(pool, j) for j in stages]
            for i, genes in enumerate(pool):
                options = [np.flatnonzero(masks[:, i]) for masks in admitted]
                if all(map(len, options)):
                    fruitless = 0
                    chosen = [
                        stage[rng.choice(indices)]
                        for stage, indices in zip(scalings, options, strict=True)
                    ]
                    yield Proposal(tuple(genes.tolist()), (Scaling(), *chosen))

    def steps(self, record: Record, on_step: OnStep | None = None) -> Steps[SearchResult]:
        """Searches until the evaluations are used up or no new family is found.

        Args:
            record: What is known.
            on_step: Called with every family that is better than those before.

        Raises:
            ValueError: No family meets the budgets; the message names the scaling stage and the
                nearest costs within reach.
        """
        family = self.family
        chain = Chain(family, record, self.seed, on_step, self.most_evaluations)
        record.step = 'random families' if family.is_scaled else 'random networks'
        kind = 'random family' if family.is_scaled else 'random network'
        best: Candidate | None = None
        families = self._families(chain.rng(0, 'random families'))
        number = 0
        while left := (self.evaluations - record.evaluations) // len(family.scored_stages):
            # Several at once, so that more than one process has something to do.
            batch = list(islice(families, min(left, _FAMILIES_AT_ONCE)))
            if not batch:
                break
            numbers = {proposal: number + i for i, proposal in enumerate(batch, start=1)}
            number += len(batch)
            for candidate in (yield from family.candidates(record, batch)):
                if best is None or candidate.order < best.order:
                    best = candidate
                    place = numbers[candidate.proposal]
                    chain.add(kind, place, candidate, candidate.strategy)
        if best is None and record.failed:
            raise UsageError(record.explain_failures())
        if best is None:
            rng = chain.rng(0, 'random families')
            pool = family.feasibility.draw(rng, _POOL)
            if not len(pool):
                raise UsageError(family.feasibility.explain_empty((Scaling(),), rng))
            raise UsageError(family.feasibility.explain_unscalable(pool))
        return (yield from chain.result({'evaluations': self.evaluations}))

    def run(self, scorer: Scorer, on_step: OnStep | None = None) -> SearchResult:
        """Searches with a scorer, see :meth:`steps`."""
        return scorer.drive(self.steps(scorer, on_step))
