"""match_scaling against a scan of its own: the nearest cost that a rule reaches."""

import bisect
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmscale.arch import SCALING_RULES, Rounding, Scaling, apply_scaling, get_arch
from mmscale.cost import count, match_scaling

DWR = SCALING_RULES['dwr'].scaling
BASE = get_arch('scalenet-s0-search')


@given(st.floats(1, 500))
def test_uniform_scaling_multiplies_flops_by_the_factor(factor):
    scaling = DWR(factor)
    product = scaling.depth * scaling.width**2 * scaling.resolution**2
    assert product == pytest.approx(factor, rel=1e-12)
    # Equal shares: depth^1, width^2 and resolution^2 are each the cube root.
    for share in (scaling.depth, scaling.width**2, scaling.resolution**2):
        assert share == pytest.approx(factor ** (1 / 3), rel=1e-12)


def test_a_factor_of_1_is_the_identity():
    assert DWR(1) == Scaling()
    assert match_scaling(BASE, DWR, 1) == Scaling()
    assert match_scaling(BASE, DWR, 1.0, metric='params') == Scaling()
    # Though rounding up would turn any larger factor into another network.
    assert apply_scaling(BASE, DWR(1.001)) != BASE


def reachable(rule, metric, rounding):
    """Costs of compound scaling, by bisection of the factors where the network changes."""
    found = {}

    def cost(factor):
        if factor not in found:
            scaled = apply_scaling(BASE, DWR(factor), rule, rounding)
            found[factor] = getattr(count(scaled), metric)
        return found[factor]

    def scan(low, high):
        if cost(low) != cost(high) and high / low > 1 + 1e-3:
            middle = math.sqrt(low * high)
            scan(low, middle)
            scan(middle, high)

    scan(1.0, 8.0)
    return sorted(set(found.values()))


@pytest.mark.parametrize(
    ('rule', 'metric', 'rounding'),
    [
        ('search', 'flops', Rounding()),
        ('retraining', 'flops', Rounding('nearest')),
        ('search', 'params', Rounding('nearest', channel_divisor=8)),
        ('search', 'acts', Rounding('nearest')),
    ],
    ids=str,
)
def test_no_other_factor_comes_nearer(rule, metric, rounding):
    costs = reachable(rule, metric, rounding)
    base = getattr(count(BASE), metric)
    for factor in (1.5, 4):
        scaling = match_scaling(BASE, DWR, factor, rule, metric, rounding)
        scaled = apply_scaling(BASE, scaling, rule, rounding)
        reached = abs(getattr(count(scaled), metric) - factor * base)
        at = bisect.bisect(costs, factor * base)
        nearest = min(abs(cost - factor * base) for cost in costs[max(0, at - 1) : at + 1])
        # The factors that are tried lie 0.35 % apart: a step of one network may fall between.
        assert reached <= nearest + 0.004 * factor * base


def test_rounding_up_overshoots_and_matching_makes_up_for_it():
    factor = 4.0

    def ratio(scaling, rounding):
        return count(apply_scaling(BASE, scaling, 'search', rounding)).flops / count(BASE).flops

    up, nearest = Rounding('ceil'), Rounding('nearest')
    matched_up = match_scaling(BASE, DWR, factor, rounding=up)
    matched = match_scaling(BASE, DWR, factor, rounding=nearest)
    assert ratio(DWR(factor), up) > 1.15 * factor
    assert ratio(matched_up, up) == pytest.approx(factor, rel=0.1)
    assert ratio(matched, nearest) == pytest.approx(factor, rel=0.05)
    # Rounding up adds by itself, so it is given smaller multipliers.
    assert matched_up.width < matched.width


def test_of_equal_costs_the_smallest_factor_is_taken():
    """Depth alone: five blocks at most change nothing between two factors."""
    scaling = match_scaling(BASE, lambda factor: Scaling(depth=factor), 1.5)
    scaled = apply_scaling(BASE, scaling)
    tried = [Scaling(depth=scaling.depth / 1.0035), Scaling(depth=scaling.depth / 1.01)]
    assert all(apply_scaling(BASE, other) != scaled for other in tried)
    assert apply_scaling(BASE, Scaling(depth=scaling.depth * 1.01)) == scaled


def test_a_rule_of_one_multiplier_stays_one():
    scaling = match_scaling(BASE, lambda factor: Scaling(resolution=factor**0.5), 2)
    assert (scaling.depth, scaling.width) == (1, 1)
    reached = count(apply_scaling(BASE, scaling)).flops
    assert reached == pytest.approx(2 * count(BASE).flops, rel=0.02)


def test_settings_are_checked(refuses):
    refuses(
        lambda **bad: match_scaling(BASE, DWR, **{'factor': 2, **bad}),
        metric=['latency'],
        factor=[0.5, '2', math.inf],
        rule=['paper'],
    )


def test_a_bad_metric_is_an_error_at_factor_1_too():
    with pytest.raises(ValueError, match="metric='time'"):
        match_scaling(BASE, DWR, 1, metric='time')
