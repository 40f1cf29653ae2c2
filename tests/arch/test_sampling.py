"""HierarchicalSampler: its distributions by chi-square tests, and purity in (seed, iteration).

The draws are those of fixed seeds; a test fails where the p-value of what should be the
distribution is below 1e-4.
"""

import random
from collections import Counter
from functools import partial

import numpy as np
import pytest
from scipy.stats import chisquare

from mmscale.arch import HierarchicalSampler

LEAST_P_VALUE = 1e-4
DRAWS = 6000


def assert_distributed(values, expected):
    counts = Counter(values)
    assert set(counts) <= set(expected)
    total = sum(expected.values())
    assert total == pytest.approx(1)
    if len(expected) == 1:
        return
    observed = [counts[value] for value in expected]
    frequencies = [len(values) * share / total for share in expected.values()]
    assert chisquare(observed, frequencies).pvalue > LEAST_P_VALUE, (observed, frequencies)


@pytest.fixture(scope='module')
def draws(paper_space):
    sampler = HierarchicalSampler(paper_space, seed=7)
    return [sampler.draw(i) for i in range(DRAWS)]


def test_scaling_stages_by_number_of_choices(draws):
    shares = dict(enumerate(np.array([1, 4, 5, 7]) / 17))
    assert_distributed([draw.scaling_stage for draw in draws], shares)


@pytest.mark.parametrize(
    ('distribution', 'weights'),
    [
        ('choices', [1, 4, 5, 7]),
        ('uniform', [1, 1, 1, 1]),
        ('inverse_budget', [8, 4, 2, 1]),
        ('inverse_sqrt_budget', [8**0.5, 2, 2**0.5, 1]),
    ],
)
def test_distributions_of_scaling_stages(paper_space, distribution, weights):
    sampler = HierarchicalSampler(paper_space, seed=1, distribution=distribution)
    shares = np.array(weights) / sum(weights)
    assert sampler.probabilities == pytest.approx(shares)
    stage_of = {
        resolution: j
        for j, stage in enumerate(paper_space.scaling_stages)
        for resolution in stage.resolution
        if resolution != 224
    }
    # 224 px is a choice of scaling stages 0 and 1, with a third of stage 1's share.
    drawn = [stage_of.get(sampler.resolution(i), 'base') for i in range(20_000)]
    assert_distributed(
        drawn,
        {'base': shares[0] + shares[1] / 3, 1: shares[1] * 2 / 3, 2: shares[2], 3: shares[3]},
    )


def test_every_width_and_depth_is_equally_likely(draws, paper_space):
    multipliers = [width for stage in paper_space.scaling_stages for width in stage.width]
    assert len(multipliers) == 17
    shares = dict.fromkeys(multipliers, 1 / 17)
    assert_distributed([draw.scaling.width for draw in draws], shares)
    assert_distributed([draw.scaling.depth for draw in draws], shares)


def test_resolutions(draws):
    shares = {224: 7, 240: 4, 256: 4, 272: 5, 288: 5, 304: 5, 320: 7, 336: 7, 354: 7}
    assert_distributed(
        [draw.arch.resolution for draw in draws],
        {resolution: share / 51 for resolution, share in shares.items()},
    )


def test_depth_width_and_resolution_are_independent(draws, paper_space):
    for j, choices in enumerate(paper_space.scaling_stages):
        drawn = [draw for draw in draws if draw.scaling_stage == j]
        pairs = [(draw.scaling.depth, draw.scaling.width) for draw in drawn]
        cells = len(choices.depth) * len(choices.width)
        assert_distributed(
            pairs, {(d, w): 1 / cells for d in choices.depth for w in choices.width}
        )
        pairs = [(draw.scaling.width, draw.arch.resolution) for draw in drawn]
        cells = len(choices.width) * len(choices.resolution)
        assert_distributed(
            pairs, {(w, r): 1 / cells for w in choices.width for r in choices.resolution}
        )


def test_base_models_have_uniform_depths_then_uniform_kernels(draws, paper_space):
    bases = [paper_space.decode(draw.genotype) for draw in draws]
    for i, choices in enumerate(paper_space.stages):
        depths = [len(base.stages[i]) for base in bases]
        shares = dict.fromkeys(choices.depths, 1 / len(choices.depths))
        assert_distributed(depths, shares)
        for depth in choices.depths:
            for slot in range(depth):
                kernels = [
                    base.stages[i][slot].kernel for base in bases if len(base.stages[i]) == depth
                ]
                assert_distributed(kernels, dict.fromkeys((3, 5, 7), 1 / 3))


def test_sides(draws, paper_space):
    assert_distributed([draw.side for draw in draws], {'left': 0.5, 'right': 0.5})
    sampler = HierarchicalSampler(paper_space, sides=['left'])
    assert {sampler.draw(i).side for i in range(50)} == {'left'}


def test_neighbouring_iterations_are_independent(draws):
    stages = [draw.scaling_stage for draw in draws]
    shares = np.array([1, 4, 5, 7]) / 17
    pairs = list(zip(stages[::2], stages[1::2], strict=True))
    assert_distributed(pairs, {(i, j): shares[i] * shares[j] for i in range(4) for j in range(4)})


def test_a_draw_is_what_its_parts_say(draws, paper_space):
    for draw in draws[:200]:
        assert draw.arch == paper_space.decode(draw.genotype, draw.scaling)
        assert draw.scaling in paper_space.scalings(draw.scaling_stage)
        assert paper_space.genotype(np.array(draw.genotype.genes)) == draw.genotype


def test_draws_depend_on_seed_and_iteration_alone(draws, paper_space):
    sampler = HierarchicalSampler(paper_space, seed=7)
    iterations = list(range(0, DRAWS, 23))
    random.Random(0).shuffle(iterations)
    np.random.seed(0)
    for i in iterations:
        sampler.resolution(i + 1)
        assert sampler.draw(i) == draws[i]
        np.random.random()
    assert sampler.draw(iterations[0]) == draws[iterations[0]]


def test_resolution_is_that_of_the_draw(draws, paper_space):
    sampler = HierarchicalSampler(paper_space, seed=7)
    assert [sampler.resolution(i) for i in range(DRAWS)] == [
        draw.arch.resolution for draw in draws
    ]


def test_seeds_differ(draws, paper_space):
    other = HierarchicalSampler(paper_space, seed=8)
    equal = sum(other.draw(i) == draws[i] for i in range(200))
    assert equal == 0


def test_warm_up_draws_from_one_scaling_stage_and_ends_in_time(paper_space):
    plain = HierarchicalSampler(paper_space, seed=7)
    stages = [plain.draw(i).scaling_stage for i in range(60)]
    length = next(i for i in range(20, 60) if stages[i] != 2)
    warm = HierarchicalSampler(paper_space, 7, warmup_iters=length, warmup_scaling_stage=2)
    assert all(warm.draw(i).scaling_stage == 2 for i in range(length))
    assert set(stages[:length]) != {2}
    assert [warm.draw(i) for i in range(length, 60)] == [plain.draw(i) for i in range(length, 60)]


def test_bad_options(paper_space, refuses):
    refuses(
        partial(HierarchicalSampler, paper_space),
        distribution=['budget'],
        sides=[[], ['top'], 'left'],
        seed=[-1, True, None],
        warmup_scaling_stage=[4],
    )
