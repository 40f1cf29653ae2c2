"""Checks of schedule settings, and how many evaluations a schedule needs at most."""

from __future__ import annotations

from collections.abc import Sequence

from mmscale.errors import UsageError
from mmscale.search.feasibility import Feasibility


def checked_halving(value: object) -> bool:
    """The setting `halving`, whether to stop evaluating candidates that certainly lose.

    Raises:
        ValueError: It is neither true nor false.
    """
    if not isinstance(value, bool):
        raise UsageError(f'halving={value!r:.60} must be True or False')
    return value


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
