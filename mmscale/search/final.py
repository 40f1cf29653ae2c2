"""The final round of a search: the leaders that its images do not tell apart, scored on more."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np

from mmscale.search.family import Candidate, FamilyFitness, Proposal
from mmscale.search.result import FamilyMember, FinalRound, SearchResult
from mmscale.search.scoring import Scorer


def leaders(result: SearchResult, family: FamilyFitness, most: int) -> list[Candidate]:
    """What a search found, and the runners-up that are within the error of it.

    Args:
        result: Of the search.
        family: What it was searched by.
        most: How many at most.

    Returns:
        Candidates, what was found first; it alone where all else is told apart.
    """
    found = Proposal(result.base.genes, result.strategy)
    (cost,) = family.feasibility.cost(np.array([found.genes], dtype=np.int64)).tolist()
    winner = Candidate(result.base, result.strategy, result.fitness, cost)
    others = [one for one in result.alike if one.proposal != found]
    return [winner, *others][:most]


def final_round(
    result: SearchResult,
    family: FamilyFitness,
    most: int,
    scorer: Scorer,
    open_final: Callable[[], AbstractContextManager[Scorer]],
) -> SearchResult:
    """Chooses among the leaders of a search by their scores on more images.

    All ranks must call it with equal results. It is a function of the result and of the scores.

    Args:
        result: Of the search.
        family: What it was searched by.
        most: Leaders to score at most.
        scorer: Of the search: it scores what the result has of another family and lacks.
        open_final: Opens what scores on more images, with an archive of its own.

    Returns:
        The result, with the leader as its family that is best on these images, and both scores;
        unchanged where there is one leader, or none can be scored.
    """
    candidates = leaders(result, family, most)
    if len(candidates) == 1:
        return result
    with open_final() as final:
        final.step = 'final round'
        proposals = [candidate.proposal for candidate in candidates]
        scored = sorted(
            final.drive(family.candidates(final, proposals)), key=lambda one: one.order
        )
        if not scored:
            return result
        known = {candidate.proposal: candidate for candidate in candidates}
        best = known[scored[0].proposal]
        members = _members(result, family, best, scorer)
        finals = [final.archive.score(member.arch) for member in members]
    images = min(score.total for score in finals if score is not None)
    return replace(
        result,
        base=best.genotype,
        family=tuple(
            replace(member, final_score=score)
            for member, score in zip(members, finals, strict=True)
        ),
        fitness=best.fitness,
        evaluations=scorer.evaluations,
        failed=len(scorer.failed),
        runners_up=tuple(
            sorted(
                (one for one in (*candidates[:1], *result.runners_up) if one != best),
                key=lambda one: one.order,
            )
        ),
        final=FinalRound(
            images,
            tuple(known[one.proposal] for one in scored),
            tuple(one.fitness for one in scored),
        ),
    )


def _members(
    result: SearchResult, family: FamilyFitness, best: Candidate, scorer: Scorer
) -> tuple[FamilyMember, ...]:
    """The networks of a leader, with their scores in the search."""
    archs = [family.space.decode(best.genotype, scaling) for scaling in best.strategy]
    scores = scorer.score(archs)
    table = family.feasibility.table
    return tuple(
        FamilyMember(member.scaling_stage, best.genotype, scaling, arch, table.cost(arch), score)
        for member, scaling, arch, score in zip(
            result.family, best.strategy, archs, scores, strict=True
        )
    )
