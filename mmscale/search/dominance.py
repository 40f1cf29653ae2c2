"""Points of score and cost: dominance, crowding, and the area below a front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

Point = tuple[Fraction, float]
"""A score, the higher the better, and a positive cost, the lower the better."""


def pareto_front(points: Sequence[Point]) -> list[int]:
    """Indices of the points that no other point dominates, by rising cost.

    A point dominates another if it is no worse in both and better in one; equal points do not
    dominate each other.
    """
    front: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][1], -points[i][0], i)):
        if not front or points[i][0] > points[front[-1]][0] or points[i] == points[front[-1]]:
            front.append(i)
    return front


def non_dominated_sort(points: Sequence[Point]) -> list[list[int]]:
    """Sorts points into fronts: each is what no point dominates once those before are taken out.

    Returns:
        Indices by front, each by rising cost (NSGA-II, Deb et al. 2002, section III-A).
    """
    left = list(range(len(points)))
    fronts = []
    while left:
        front = [left[i] for i in pareto_front([points[i] for i in left])]
        fronts.append(front)
        taken = set(front)
        left = [i for i in left if i not in taken]
    return fronts


def crowding_distances(points: Sequence[Point]) -> list[float]:
    """How far the neighbours of each point of a front lie apart (NSGA-II, section III-B).

    Costs are compared by their logarithm, as budgets double from scaling stage to scaling stage.

    Returns:
        Sum over score and log cost of the distance between both neighbours, relative to the
        whole; infinite at the ends.
    """
    distances = [0.0] * len(points)
    for values in (
        [float(score) for score, _ in points],
        [math.log2(cost) for _, cost in points],
    ):
        order = sorted(range(len(points)), key=lambda i: (values[i], i))
        extent = values[order[-1]] - values[order[0]] if order else 0.0
        for place, i in enumerate(order):
            if place in (0, len(order) - 1):
                distances[i] = math.inf
            elif extent:
                before, after = order[place - 1], order[place + 1]
                distances[i] += (values[after] - values[before]) / extent
    return distances


def hypervolume(points: Sequence[Point], cost_range: tuple[float, float]) -> float:
    """The area below a front, between 0 and 1.

    It is the mean of the best score that a budget buys, over budgets that are uniform in the
    logarithm; a budget that buys nothing counts 0.

    Args:
        points: Need not be a front.
        cost_range: Smallest and largest budget; the largest and the score 0 are the reference.
    """
    low, high = cost_range
    inside = [(score, max(cost, low)) for score, cost in points if cost <= high]
    front = [inside[i] for i in pareto_front(inside)]
    if not front or low == high:
        return float(front[-1][0]) if front else 0.0
    ends = [cost for _, cost in front[1:]] + [high]
    area = sum(
        float(score) * math.log2(end / cost)
        for (score, cost), end in zip(front, ends, strict=True)
    )
    return area / math.log2(high / low)
