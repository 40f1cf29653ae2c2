"""Params and acts grow with the factor as "Fast and Accurate Model Scaling" says they do."""

import runpy
from pathlib import Path

import pytest

from mmscale.arch import Rounding, fast_rule, get_arch, scaling_rule

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / 'benchmarks' / 'exponents.py'))

# Exponents of params and acts when flops grow as the factor (arXiv 2103.06877, Tables 1 and 2).
PAPER = {
    'd': (1, 1),
    'w': (1, 1 / 2),
    'r': (0, 1),
    'dw': (1, 3 / 4),
    'dr': (1 / 2, 1),
    'wr': (1 / 2, 3 / 4),
    'dwr': (2 / 3, 5 / 6),
    'dWr': (0.9, 0.6),
}


def test_printed_theory_is_the_papers():
    for name, exponents in PAPER.items():
        theory = SCRIPT['theory'](scaling_rule(name))
        assert theory['flops'] == pytest.approx(1)
        assert (theory['params'], theory['acts']) == pytest.approx(exponents)


def test_ideal_stage():
    for name, exponents in PAPER.items():
        found = SCRIPT['exponents'](
            SCRIPT['ideal_stage'](), scaling_rule(name), Rounding('nearest')
        )
        assert tuple(found.values()) == pytest.approx((1, *exponents), abs=0.003), name


@pytest.mark.parametrize('base', ['RegNetY-4.0GF', 'EfficientNet-B0'])
def test_real_networks(base):
    for name, exponents in PAPER.items():
        found = SCRIPT['exponents'](get_arch(base), scaling_rule(name))
        assert tuple(found.values()) == pytest.approx((1, *exponents), abs=0.1), name


def test_acts_fall_with_alpha():
    base = get_arch('RegNetY-4.0GF')
    acts = [SCRIPT['exponents'](base, fast_rule(alpha / 10))['acts'] for alpha in range(0, 11, 2)]
    assert acts == sorted(acts, reverse=True)


def test_fast_family_on_the_ideal_stage():
    for alpha in (0, 0.2, 0.5, 0.8, 1):
        found = SCRIPT['exponents'](SCRIPT['ideal_stage'](), fast_rule(alpha), Rounding('nearest'))
        wanted = ((1 + alpha) / 2, 1 - alpha / 2)
        assert (found['params'], found['acts']) == pytest.approx(wanted, abs=0.003)
