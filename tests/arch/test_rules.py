"""Scaling rules: exponents of the paper, names, and what they refuse."""

import math
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmscale.arch import SCALING_RULES, Scaling, ScalingRule, fast_rule, scaling_rule

# Exponents of depth, width and resolution when flops grow with the factor (arXiv 2103.06877,
# Tables 1 and 2).
EXPONENTS = {
    'd': (1, 0, 0),
    'w': (0, 1 / 2, 0),
    'r': (0, 0, 1 / 2),
    'dw': (1 / 2, 1 / 4, 0),
    'dr': (1 / 2, 0, 1 / 4),
    'wr': (0, 1 / 4, 1 / 4),
    'dwr': (1 / 3, 1 / 6, 1 / 6),
    'dWr': (0.1, 0.4, 0.05),
}


def test_exponents_of_the_paper():
    for name, exponents in EXPONENTS.items():
        rule = SCALING_RULES[name]
        assert (rule.name, rule.depth, rule.width, rule.resolution) == (name, *exponents)
        assert rule.group_width is None


def test_every_rule_that_widens_has_a_variant_with_fixed_groups():
    variants = {name for name in SCALING_RULES if name.endswith('_gfix')}
    assert variants == {f'{name}_gfix' for name, (_, width, _) in EXPONENTS.items() if width}
    for name in variants:
        rule, whole = SCALING_RULES[name], SCALING_RULES[name.removesuffix('_gfix')]
        assert rule.scaling(7).group_width == 1
        assert rule.scaling(7).width == whole.scaling(7).width
    assert set(SCALING_RULES) == {*EXPONENTS, *variants, 'g'}
    assert SCALING_RULES['g'].scaling(4) == Scaling(1, 1, 1, 4)


@given(st.floats(0.01, 100), st.sampled_from(sorted(EXPONENTS)))
def test_multipliers_make_up_the_factor(factor, name):
    scaling = SCALING_RULES[name].scaling(factor)
    product = scaling.depth * scaling.width**2 * scaling.resolution**2
    assert product == pytest.approx(factor, rel=1e-12)


@given(st.floats(0, 1))
def test_fast_family_shares(alpha):
    rule = fast_rule(alpha)
    shares = (rule.depth, 2 * rule.width, 2 * rule.resolution)
    assert shares == pytest.approx(((1 - alpha) / 2, alpha, (1 - alpha) / 2), abs=1e-15)


def test_fast_family_contains_the_plain_rules():
    for alpha, name in ((1, 'w'), (0, 'dr'), (1 / 3, 'dwr')):
        rule, plain = fast_rule(alpha), SCALING_RULES[name]
        found = (rule.depth, rule.width, rule.resolution)
        assert found == pytest.approx((plain.depth, plain.width, plain.resolution), abs=1e-15)
    assert fast_rule() == fast_rule(0.8) == SCALING_RULES['dWr']


def test_names_of_rules():
    assert scaling_rule('dWr') is SCALING_RULES['dWr']
    assert scaling_rule('dWr', alpha=0.6) == scaling_rule('dWr_a0.6') == fast_rule(0.6)
    assert scaling_rule('dWr_a0.6_gfix') == scaling_rule('dWr_gfix', alpha=0.6)
    assert scaling_rule('dWr_a0.6_gfix').name == 'dWr_a0.6_gfix'
    assert scaling_rule('dWr', alpha=0.8).name == 'dWr'
    own = ScalingRule('mine', 0.2, 0.3, 0.1)
    assert scaling_rule(own) is own


def test_shares_as_pycls_writes_them():
    fast, fixed = scaling_rule('d1_w8_g8_r1'), scaling_rule('d1_w8_r1')
    assert fast.scaling(5) == Scaling(
        *(5**e for e in EXPONENTS['dWr']), group_width=5 ** EXPONENTS['dWr'][1]
    )
    assert fixed.scaling(5) == SCALING_RULES['dWr_gfix'].scaling(5)
    assert scaling_rule('w1.5_r0.5').width == 0.375


def test_exponents_as_a_user_writes_them():
    rule = scaling_rule('depth=.2, width=0.3,resolution=1e-1')
    assert rule == ScalingRule('depth0.2_width0.3_resolution0.1', 0.2, 0.3, 0.1)
    assert rule.scaling(4) == Scaling(4**0.2, 4**0.3, 4**0.1)
    assert scaling_rule('width=.5,group_width=0') == ScalingRule(
        'width0.5_group_width0', 0, 0.5, 0, 0.0
    )


def test_bad_numbers(refuses):
    bad = [math.nan, True, '2', None]
    refuses(SCALING_RULES['dWr'].scaling, factor=[0, -1, math.inf, *bad])
    refuses(partial(scaling_rule, 'dWr'), alpha=[-0.1, 1.1, math.nan, True, '0.5'])
    refuses(partial(ScalingRule, 'mine', depth=0, resolution=0), width=[-2.1, 2.5, *bad])
    with pytest.raises(ValueError, match=r'alpha=0\.5 is of dWr and dWr_gfix, not of'):
        scaling_rule('w', alpha=0.5)


def test_factor_beyond_all_bounds():
    with pytest.raises(
        ValueError, match=r'depth=1000000\.0 must be a number above 0 and below 1000'
    ):
        SCALING_RULES['d'].scaling(1e6)
    with pytest.raises(ValueError, match=r'factor=.* must be a number above 0'):
        SCALING_RULES['dWr'].scaling(10**400)
    with pytest.raises(ValueError, match=r'factor=.* by strategy mine: too large'):
        ScalingRule('mine', 2, 0, 0).scaling(1e300)


def test_unknown_rules():
    for name, message in (
        ('DWR', r"strategy='DWR' is not known: did you mean dwr or dWr\?"),
        ('wgfix', r'did you mean w_gfix'),
        ('wg', r"pycls' wg is w here, where groups widen too, and its w is w_gfix"),
        ('dwgr', r"pycls' dwgr is dwr here, .* its dwr is dwr_gfix"),
        ('gwd', r"pycls' gwd is dw here"),
        ('dg', r"pycls' dg is d1_g1 here"),
        ('depth=.2,widht=.3', r"'widht=.3' is not one of depth, width, resolution, group_width"),
        ('depth=.2,depth=.3', r'depth is given twice'),
        ('depth=much', r"'depth=much' is not one of"),
        ('depth=3', r'depth=3.0 must be a number in -2..2'),
        ('depth=nan', r'depth=nan must be a number in -2..2'),
        ('uniform', r"strategy='uniform' is not known: upper.* rules are d, w, r, dw"),
        (None, r'strategy=None is not known'),
        ('d1_d2', r'd is given twice'),
        ('d0_g4', r'd, w or r must have a share'),
        ('dWr_a1.5', r'alpha=1\.5 must be a number in 0\.\.1'),
    ):
        with pytest.raises(ValueError, match=message):
            scaling_rule(name)
