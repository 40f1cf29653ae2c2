"""The way back from a scaled network to its base model and scaling."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from random_spaces import spaces

from mmscale.arch import Scaling
from mmscale.search.distinct import distinct_scalings
from mmscale.search.unscale import unscale


@settings(max_examples=10)
@given(space=spaces(scaling_stages=2), seed=st.integers(0, 2**32))
def test_what_is_found_makes_the_network(space, seed):
    rng = np.random.default_rng(seed)
    scalings = [scaling for j in range(2) for scaling in distinct_scalings(space, j)]
    for row in space.sample(rng, 4):
        arch = space.decode(row, scalings[rng.integers(len(scalings))])
        base, scaling = unscale(space, arch, scalings)
        assert space.decode(base, scaling) == arch


def test_nothing_is_found_for_what_no_scaling_makes(paper_space):
    arch = paper_space.largest(3)
    assert unscale(paper_space, arch, [Scaling(), *paper_space.scalings(1)]) is None
