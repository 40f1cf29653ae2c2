"""Base models are drawn each equally likely, also where choices mean the same block."""

import numpy as np
import pytest
from analytic_problem import all_genotypes
from hypothesis import given, settings
from hypothesis import strategies as st
from random_spaces import spaces

from mmscale.arch import SearchSpace
from mmscale.search.uniform import sample_base_models

ENDS = dict(head=dict(channels=[16, 24]), num_classes=2, resolution=[32, 48])
# Kinds that ignore expansions and SE, choices that a stage shares, widths on both sides.
AMBIGUOUS = [
    dict(kind=['mbconv', 'dsconv'], expands=[1, 2], depths=[1, 3], kernels=[3]),
    dict(
        kind=['basic', 'mbconv', 'conv'],
        expands=[1, 2],
        se=[False, True],
        depths=[1, 2],
        kernels=[3],
        share=dict(kind='stage'),
    ),
    dict(
        kind=['mbconv', 'dsconv', 'conv'],
        act=['relu', 'silu'],
        expands=[1, 3],
        depths=[1, 2],
        kernels=[1, 3],
        share=dict(act='stage', expands='stage'),
        first=dict(kernels=[3], expands=[1, 2]),
        skips='anywhere',
    ),
]


def chi_square(space, number):
    genes = sample_base_models(space, np.random.default_rng(0), number)
    assert (space.canonicalise(genes) == genes).all()
    drawn, counts = np.unique(genes, axis=0, return_counts=True)
    assert (drawn == all_genotypes(space)).all()
    expected = number / space.size
    return ((counts - expected) ** 2 / expected).sum(), space.size - 1


@pytest.mark.parametrize('stage', AMBIGUOUS)
def test_each_base_model_is_drawn_equally_often(stage):
    space = SearchSpace(stages=[dict(channels=8, **stage)], stem=dict(channels=[8, 16]), **ENDS)
    assert space.size < np.prod(space.num_choices)
    found, freedom = chi_square(space, 40 * space.size)
    assert abs(found - freedom) < 5 * (2 * freedom) ** 0.5


@settings(max_examples=40)
@given(space=spaces(most=200))
def test_base_models_of_any_space_are_drawn_equally_often(space):
    found, freedom = chi_square(space, 60 * space.size)
    assert abs(found - freedom) <= 6 * (2 * freedom) ** 0.5 + 1e-9


@given(seed=st.integers(0, 2**32))
def test_numbers_of_networks_may_be_larger_than_any_float(seed):
    space = SearchSpace(
        stages=[dict(channels=[8, 16], depths=[1, 2000], kernels=[3, 5, 7])],
        stem=dict(channels=8),
        **ENDS,
    )
    genes = sample_base_models(space, np.random.default_rng(seed), 3)
    assert (space.depths(genes) == 2000).all()
