"""Distinct scalings are told apart by the networks that they make, and by nothing else."""

from analytic_problem import all_genotypes
from hypothesis import given, settings
from random_spaces import spaces

from mmscale.arch import SearchSpace
from mmscale.search.distinct import distinct_scalings


@settings(max_examples=60)
@given(space=spaces(most=40, scaling_stages=2))
def test_the_first_of_all_scalings_that_make_the_same_networks(space):
    first = {}
    genotypes = all_genotypes(space)
    for scaling in space.scalings(1):
        networks = tuple(space.decode(row, scaling) for row in genotypes)
        first.setdefault(networks, scaling)
    assert distinct_scalings(space, 1) == tuple(first.values())


def test_a_width_that_only_some_base_models_feel_counts():
    """To multiples of 8, 1.02 of 16 is 16, and of 256 it is 264."""
    space = SearchSpace(
        stages=[dict(channels=[16, 256], depths=[1, 2], kernels=[3])],
        scaling_stages=[
            dict(depth=[1], width=[1], resolution=[32]),
            dict(depth=[1, 1.1], width=[1, 1.02, 1.04], resolution=[32]),
        ],
        rounding=dict(mode='nearest', channel_divisor=8),
        stem=dict(channels=16),
        head=dict(channels=0),
        num_classes=2,
    )
    found = distinct_scalings(space, 1)
    assert [(s.depth, s.width) for s in found] == [(1, 1), (1, 1.02)]
