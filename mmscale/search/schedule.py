"""Schedules: which there are, checks of their settings, and what they evaluate at most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mmscale.arch.checks import integer
from mmscale.errors import UsageError
from mmscale.search.feasibility import Feasibility


@dataclass(frozen=True)
class Schedule:
    """How a search spends its evaluations.

    Attributes:
        population: Base models of a generation.
        generations: Generations of a base evolution.
        rounds: Rounds of base evolution and scaling search; None for as many as there are
            evaluations for.
        num_base_models: Base models that the first strategy is compared on.
    """

    population: int
    generations: int
    rounds: int | None
    num_base_models: int


RELEASED = Schedule(population=64, generations=40, rounds=8, num_base_models=20)
"""What the released ScaleNet searches with."""

# Up to so many families that can be scored: population and generations.
_SCHEDULES = ((400, 6, 3), (4000, 16, 8), (math.inf, 64, 20))
# With a surrogate few at a time, as it learns from each: of families of several networks one,
# while the scalings of the best take their share.
_LEARNING = ((400, 1, 1), (4000, 8, 4), (math.inf, 32, 4))
_LEARNING_ALONE = ((400, 4, 2), *_LEARNING[1:])


def schedule_for(evaluations: int, num_scored: int, surrogate: bool) -> Schedule:
    """How so many evaluations are spent, unless the config says.

    Args:
        evaluations: Distinct Archs to score.
        num_scored: Scaling stages that the fitness counts.
        surrogate: Whether candidates are predicted before they are scored.
    """
    families = evaluations // num_scored
    learning = _LEARNING if num_scored > 1 else _LEARNING_ALONE
    schedules = learning if surrogate else _SCHEDULES
    population, generations = next(own for most, *own in schedules if families <= most)
    return Schedule(population, generations, None, 0)


def flag(name: str, value: object) -> bool:
    """A setting that is true or false.

    Raises:
        ValueError: It is neither.
    """
    if not isinstance(value, bool):
        raise UsageError(f'{name}={value!r:.60} must be True or False')
    return value


def checked_evaluations(
    evaluations: int | None, num_scored: int, halving: bool = False
) -> int | None:
    """The setting `evaluations`: None, or enough for one family.

    Raises:
        ValueError: It is neither, or stands beside `halving`.
    """
    if halving and evaluations is not None:
        raise UsageError(
            f'halving=True beside evaluations={evaluations!r:.60}: what is dropped half-way is '
            f'no evaluation, so that their number limits nothing; set population, generations '
            f'and rounds instead'
        )
    return None if evaluations is None else integer('evaluations', evaluations, num_scored)


def uses_surrogate(surrogate: bool | None, evaluations: int | None) -> bool:
    """The setting `surrogate`; by default candidates are predicted where evaluations are given.

    A schedule of generations alone keeps the meaning that it had before there were surrogates.

    Raises:
        ValueError: It is of another kind.
    """
    return evaluations is not None if surrogate is None else flag('surrogate', surrogate)


def most_evaluations(
    feasibility: Feasibility,
    scored_stages: Sequence[int],
    population: int = 0,
    generations: int = 0,
    rounds: int = 1,
    scaling_searches: int | None = None,
    num_base_models: int = 0,
) -> int:
    """Upper bound of the distinct Archs that a search evaluates.

    Args:
        feasibility: Knows the distinct scalings of every scaling stage.
        scored_stages: Scaling stages that the fitness counts.
        population: As for the search; 0 for a search of the strategy alone.
        generations: As for the search.
        rounds: As for the search.
        scaling_searches: Number of scaling searches, by default one per round.
        num_base_models: As for the search; 0 without an initial strategy.
    """
    scalings = sum(len(feasibility.distinct_scalings(j)) for j in scored_stages if j)
    evolution = population * generations * len(scored_stages)
    # In the end every network of the family has a score, also those the fitness leaves out.
    family = len(feasibility.space.scaling_stages)
    grids = num_base_models + (rounds if scaling_searches is None else scaling_searches)
    return rounds * evolution + grids * scalings + family
