"""A rule fitted to a strategy: exact where the strategy is one, and a least-squares fit else."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmscale.arch import Scaling, scaling_rule
from mmscale.arch.generalise import fit_rule
from mmscale.arch.presets import SCALENET_STRATEGY

exponents = st.floats(0, 1)


@given(exponents, exponents, exponents, st.lists(st.floats(1.5, 40), min_size=1, max_size=5))
def test_a_power_rule_is_found_again(depth, width, resolution, ratios):
    strategy = [Scaling(r**depth, r**width, r**resolution) for r in ratios]
    rule = fit_rule(strategy, ratios)
    assert rule.depth == pytest.approx(depth, abs=1e-9)
    assert rule.width == pytest.approx(width, abs=1e-9)
    assert rule.resolution == pytest.approx(resolution, abs=1e-9)


def test_it_is_the_least_squares_fit_through_the_base_model():
    ratios = [2.27, 4.60, 8.60]
    rule = fit_rule(SCALENET_STRATEGY[1:4], ratios, 'found')
    logs = np.log2(ratios)[:, None]
    for key in ('depth', 'width', 'resolution'):
        values = np.log2([getattr(scaling, key) for scaling in SCALENET_STRATEGY[1:4]])
        assert getattr(rule, key) == pytest.approx(np.linalg.lstsq(logs, values)[0][0])
    assert rule.name == 'found'
    assert rule.scaling(1) == Scaling()
    # The base model's own point, (1, 1, 1) at 1, says nothing.
    assert fit_rule(SCALENET_STRATEGY[:4], [1, *ratios], 'found') == rule


def test_the_fit_is_a_rule_like_any_other():
    rule = fit_rule([Scaling(2, 2, 1)], [8], 'found')
    assert scaling_rule(rule) is rule
    assert rule.scaling(64).width == pytest.approx(4)


def test_what_cannot_be_fitted_is_an_error():
    for strategy, ratios, message in (
        ([Scaling()], [1, 2], '1 scalings but 2 cost_ratios'),
        ([Scaling()], [0], 'cost_ratios=0 must be a number above 0'),
        ([Scaling()], [math.inf], 'cost_ratios=inf must be'),
        ([Scaling()], [1], 'needs a scaling stage whose cost differs'),
        ([Scaling(depth=8)], [2], 'depth=3.0 must be a number in '),
    ):
        with pytest.raises(ValueError, match=message):
            fit_rule(strategy, ratios)
