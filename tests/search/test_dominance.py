"""Dominance, crowding and hypervolume against definitions written down naively."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmscale.search import crowding_distances, hypervolume, non_dominated_sort, pareto_front

# Few values, so that there are ties in both objectives and equal points.
POINTS = st.lists(
    st.tuples(st.integers(0, 6).map(lambda n: Fraction(n, 6)), st.integers(1, 7)), max_size=24
)


def dominates(a, b):
    return a[0] >= b[0] and a[1] <= b[1] and a != b


def naive_fronts(points):
    left, fronts = set(range(len(points))), []
    while left:
        front = {i for i in left if not any(dominates(points[j], points[i]) for j in left)}
        fronts.append(front)
        left -= front
    return fronts


@given(POINTS)
def test_fronts_are_those_of_the_definition(points):
    fronts = non_dominated_sort(points)
    assert [set(front) for front in fronts] == naive_fronts(points)
    assert sorted(i for front in fronts for i in front) == list(range(len(points)))
    if points:
        assert pareto_front(points) == fronts[0]
    for front in fronts:
        costs = [points[i][1] for i in front]
        assert costs == sorted(costs)


def test_no_points_have_no_front():
    assert pareto_front([]) == [] and non_dominated_sort([]) == [] and crowding_distances([]) == []


def test_crowding_by_hand():
    points = [(Fraction(n, 10), cost) for n, cost in ((2, 1), (3, 2), (7, 4), (8, 16))]
    # Scores span 0.6 and log costs 4 doublings.
    assert crowding_distances(points) == [
        math.inf,
        pytest.approx(0.5 / 0.6 + 2 / 4),
        pytest.approx(0.5 / 0.6 + 3 / 4),
        math.inf,
    ]


@given(POINTS)
def test_crowding_of_every_front(points):
    for front in non_dominated_sort(points):
        members = [points[i] for i in front]
        distances = crowding_distances(members)
        assert all(distance >= 0 for distance in distances)
        for extreme in (min, max):
            for objective in (0, 1):
                value = extreme(member[objective] for member in members)
                ends = [i for i, member in enumerate(members) if member[objective] == value]
                assert any(distances[i] == math.inf for i in ends)
        # Of equal points those between others of them have no room at all.
        for point in set(members):
            same = [d for d, member in zip(distances, members, strict=True) if member == point]
            assert sum(d > 0 for d in same) <= 4


@given(POINTS, st.sampled_from([(1, 7), (2, 5), (0.5, 20), (3, 3)]))
def test_hypervolume_is_the_mean_of_what_budgets_buy(points, cost_range):
    low, high = cost_range
    steps = 1000
    total = 0.0
    for i in range(steps):
        budget = low * (high / low) ** ((i + 0.5) / steps)
        total += max((float(score) for score, cost in points if cost <= budget), default=0.0)
    assert hypervolume(points, cost_range) == pytest.approx(total / steps, abs=6e-3)


@given(POINTS, POINTS)
def test_more_points_never_cover_less(points, more):
    assert hypervolume(points + more, (1, 7)) >= hypervolume(points, (1, 7)) - 1e-12
    assert 0 <= hypervolume(points, (1, 7)) <= 1
