"""SearchSpace: the paper's space in numbers, canonical genotypes, scalings and bad configs."""

import copy
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmscale.arch import Genotype, Scaling, SearchSpace, get_arch

# ---------------------------------------------------------------- the paper's space


def test_size_of_the_papers_space(paper_space):
    assert paper_space.size == 3 * 120**5 * 3
    assert f'{paper_space.size:.3e}' == '2.239e+11'


def test_printing_says_what_may_be_chosen(paper_space):
    lines = str(paper_space).splitlines()
    assert f'{paper_space.size:.4g} base models at 224 px, 29 genes' in lines[0]
    stages, scalings = lines[-12:-5], lines[-4:]
    for stage, row in zip(paper_space.stages, stages, strict=True):
        (channels,), (expand,) = stage.channels, stage.values('expand')
        numbers = (channels, stage.stride, expand, *stage.depths, *stage.values('kernel'))
        assert row.split()[1:] == list(map(str, numbers))
    for j, row in enumerate(scalings):
        assert row.split()[-1] == str(len(paper_space.scalings(j)))


def test_nominal_scalings_of_the_papers_space(paper_space):
    assert [len(paper_space.scalings(j)) for j in range(4)] == [1, 48, 75, 147]
    widths = [width for stage in paper_space.scaling_stages for width in stage.width]
    assert widths == [
        round(1 + 0.04 * i, 2) for i in [0, *range(1, 5), *range(5, 10), *range(10, 17)]
    ]


def test_distinct_scalings_of_the_papers_space(paper_space):
    rng = np.random.default_rng(0)
    genes = paper_space.sample(rng, 6)
    for scaling_stage, most in enumerate([1, 12, 45, 42]):
        scalings = paper_space.scalings(scaling_stage)
        counts = [len({paper_space.decode(row, s) for s in scalings}) for row in genes]
        assert max(counts) <= most
    assert len({paper_space.decode(genes[0], s) for s in paper_space.scalings(1)}) == 12


def test_allocation_of_the_papers_super_supernet(paper_space):
    allocation = paper_space.allocation
    assert allocation.stem.out_channels == 85
    assert allocation.stages[6][0].hidden_channels == 3042 == 6 * (315 + 192)
    assert allocation.stages[6][0].out_channels == 845
    # The released code's 43 slots: these blocks, the stem, the last convolution, pooling, linear.
    assert allocation.depths == (2, 7, 7, 7, 7, 7, 2)
    assert sum(allocation.depths) + 4 == 43
    assert allocation.head.channels == 1280
    assert {block.kernel for block in allocation.blocks} == {7}


def test_left_and_right_slices_of_every_scaling_fit_the_allocation(paper_space):
    allocation = paper_space.allocation
    largest = paper_space.largest()
    slots = zip(allocation.blocks, largest.blocks, strict=True)
    for slot, big in slots:
        assert slot.out_channels > big.out_channels
        assert slot.hidden_channels > big.hidden_channels
        assert slot.se.channels > big.se.channels
        assert slot.groups == slot.hidden_channels


def test_dimensions_that_never_scale_are_allocated_once(paper_config):
    config = copy.deepcopy(paper_config)
    for stage in config['scaling_stages']:
        stage['width'] = [1.0]
    space = SearchSpace(**config)
    assert space.allocation.stem.out_channels == 32
    assert space.allocation.widths == get_arch('scalenet-s0').widths


def test_largest_and_smallest(paper_space):
    assert paper_space.smallest().depths == (1,) * 7
    assert {block.kernel for block in paper_space.smallest().blocks} == {3}
    assert paper_space.largest(0).depths == (1, 4, 4, 4, 4, 4, 1)
    assert paper_space.largest().resolution == 354
    assert paper_space.largest(1).resolution == 256


def test_the_published_base_model_is_in_the_space(paper_space):
    published = get_arch('scalenet-s0-search')
    genotype = paper_space.encode(published)
    assert paper_space.decode(genotype) == published
    assert paper_space.scaling(1.04, 1.04, 256) in paper_space.scalings(1)
    scaled = paper_space.decode(genotype, paper_space.scaling(1.04, 1.04, 256))
    assert scaled == get_arch('scalenet-s1-search')


def test_every_resolution_survives_its_multiplier(paper_space):
    assert paper_space.resolutions == (224, 240, 256, 272, 288, 304, 320, 336, 354)
    genes = paper_space.sample(np.random.default_rng(0), 1)[0]
    for resolution in range(1, 1200):
        scaling = paper_space.scaling(1, 1, resolution)
        assert paper_space.rounding.resolution(224, scaling.resolution) == resolution
    for resolution in paper_space.resolutions:
        scaling = paper_space.scaling(1.04, 1.2, resolution)
        assert paper_space.decode(genes, scaling).resolution == resolution


# ---------------------------------------------------------------- genotypes

# Gaps in depths, single choices, unequal numbers of kernels, a first block that is a residual.
MIXED = dict(
    num_classes=10,
    in_channels=1,
    act='relu',
    stem=dict(channels=8),
    head=dict(channels=40),
    stages=[
        dict(channels=8, expand=1, depths=[1, 3], kernels=[3]),
        dict(channels=12, stride=2, expand=4, depths=[2], kernels=[3, 5, 7, 9]),
        dict(channels=12, expand=3, depths=[1, 2, 5], kernels=[5, 7]),
    ],
    scaling_stages=[
        dict(depth=[1], width=[1], resolution=[33]),
        dict(depth=[1, 1.5], width=[1.1, 1.3], resolution=[33, 47]),
    ],
)


@pytest.fixture(scope='module')
def mixed_space():
    return SearchSpace(**MIXED)


@pytest.fixture(scope='module', params=['paper_space', 'mixed_space'])
def space(request):
    return request.getfixturevalue(request.param)


def draw_genes(space, data):
    return np.array([data.draw(st.integers(0, int(most) - 1)) for most in space.num_choices])


def test_size_counts_distinct_canonical_genotypes(mixed_space):
    raw = np.array(list(itertools.product(*map(range, mixed_space.num_choices))))
    canonical = np.unique(mixed_space.canonicalise(raw), axis=0)
    assert len(canonical) == mixed_space.size == 2 * 4**2 * (2 + 2**2 + 2**5)
    archs = {mixed_space.decode(row) for row in canonical}
    assert len(archs) == mixed_space.size


@settings(max_examples=100)
@given(st.data())
def test_canonical_genotypes(paper_space, data):
    space = paper_space
    genes = draw_genes(space, data)
    canonical = space.canonicalise(genes[None])[0]
    arch = space.decode(genes)
    assert space.decode(canonical) == arch
    assert (space.canonicalise(canonical[None])[0] == canonical).all()
    assert space.encode(arch) == space.genotype(genes) == Genotype(tuple(canonical.tolist()))
    assert (canonical[~space.live(genes[None])[0]] == 0).all()
    assert arch.depths == tuple(space.depths(genes[None])[0])


@settings(max_examples=100)
@given(st.data())
def test_distinct_canonical_genotypes_are_distinct_archs(mixed_space, data):
    one, other = draw_genes(mixed_space, data), draw_genes(mixed_space, data)
    same = mixed_space.genotype(one) == mixed_space.genotype(other)
    assert same == (mixed_space.decode(one) == mixed_space.decode(other))


@settings(max_examples=60)
@given(st.data())
def test_changing_a_live_gene_changes_the_arch_and_a_dead_one_does_not(paper_space, data):
    genes = draw_genes(paper_space, data)
    gene = data.draw(st.integers(0, paper_space.num_genes - 1))
    changed = genes.copy()
    changed[gene] = (changed[gene] + 1) % paper_space.num_choices[gene]
    same = paper_space.decode(genes) == paper_space.decode(changed)
    assert same != paper_space.live(genes[None])[0, gene]


@settings(max_examples=60)
@given(st.data())
def test_scaled_depths_and_kernels(space, data):
    genes = draw_genes(space, data)
    scaling_stage = data.draw(st.integers(0, len(space.scaling_stages) - 1))
    scaling = data.draw(st.sampled_from(space.scalings(scaling_stage)))
    base, arch = space.decode(genes), space.decode(genes, scaling)
    for few, many in zip(base.stages, arch.stages, strict=True):
        assert len(many) == math.ceil(round(len(few) * scaling.depth, 6))
        kernels = [block.kernel for block in few]
        assert [block.kernel for block in many] == (
            kernels + kernels[-1:] * (len(many) - len(few))
        )
        assert all(block.residual == 'identity' and block.stride == 1 for block in many[1:])


def test_sampled_genes_are_canonical(space):
    genes = space.sample(np.random.default_rng(3), 200)
    assert (space.canonicalise(genes) == genes).all()
    assert len(np.unique(genes, axis=0)) > 150


def test_archs_outside_the_space_have_no_genotype(paper_space):
    for name in ('scalenet-s0', 'scalenet-s1-search'):
        with pytest.raises(ValueError, match='is not a base model of this space'):
            paper_space.encode(get_arch(name))


def test_bad_genes(paper_space):
    for genes, message in (
        ([0] * 28, r'genes of shape \(1, 28\): expected \(n, 29\)'),
        ([0] * 28 + [3], r'gene 28=3 must lie in 0\.\.2'),
        ([-1] + [0] * 28, r'gene 0=-1 must lie in 0\.\.0'),
        ([0.5] * 29, r'genes of type float64: expected integers'),
        ([[0] * 29, [1] * 29], r'genes of shape \(2, 29\): expected \(29,\)'),
    ):
        for method in (paper_space.decode, paper_space.genotype):
            with pytest.raises(ValueError, match=message):
                method(np.array(genes))


def test_bad_scaling_stage(paper_space):
    for scaling_stage in (4, -1):
        with pytest.raises(ValueError, match=rf'scaling_stage={scaling_stage} must lie in 0\.\.3'):
            paper_space.scalings(scaling_stage)


# ---------------------------------------------------------------- bad configs

BAD_CONFIGS = {
    (): dict(
        se=[4],
        act=['gelu'],
        rule=['timm'],
        num_classes=[0],
        in_channels=[True],
        stages=[[], None],
        scaling_stages=[{}],
    ),
    ('se',): dict(ratio=[4], gate=['tanh']),
    ('stem',): dict(width=[3], kernel=[4]),
    ('head',): dict(dropout=[0.2], channels=[-1]),
    ('stages', 1): dict(
        ratio=[6],
        channels=[1.5, 2**20],
        kernels=[[3, 4], [5, 3], [3, 3], [], 4, '35'],
        depths=[[0, 1], [1.0], [True]],
    ),
    ('scaling_stages', 1): dict(
        depth=[[1.2, 1.1], [float('inf')]], width=[[0.9, 1], [float('nan')]], resolution=[[1.5]]
    ),
    # The base model's own.
    ('scaling_stages', 0): dict(width=[[1.0, 1.1]], depth=[[1.04]], resolution=[[240, 224]]),
}


def test_bad_configs_name_the_key(paper_config):
    for path, bad in BAD_CONFIGS.items():
        for key, values in bad.items():
            for value in values:
                config = copy.deepcopy(paper_config)
                part = config
                for step in path:
                    part = part[step]
                part[key] = value
                with pytest.raises(ValueError, match=key) as error:
                    SearchSpace(**config)
                assert '\n' not in str(error.value)


def test_missing_and_unknown_keys(paper_config):
    for owner, key in ((('stages', 1), 'kernels'), (('stem',), 'channels')):
        config = copy.deepcopy(paper_config)
        part = config
        for step in owner:
            part = part[step]
        del part[key]
        with pytest.raises(ValueError, match=f'missing key {key}'):
            SearchSpace(**config)
    with pytest.raises(ValueError, match='space: unknown key widths'):
        SearchSpace.from_config(dict(paper_config, widths=[1]))


def test_a_space_does_not_change_with_its_config(paper_config):
    config = copy.deepcopy(paper_config)
    space = SearchSpace(**config)
    before = space.decode(np.zeros(29, dtype=int))
    config['se']['act'] = 'silu'
    config['stages'][1]['channels'] = 99
    config['stages'][1]['kernels'].append(9)
    assert space.decode(np.zeros(29, dtype=int)) == before
    assert space.size == 3 * 120**5 * 3


def test_scalings_are_hashable_and_of_the_config_order(paper_space):
    scalings = paper_space.scalings(1)
    assert scalings[0] == Scaling(1.04, 1.04, 1.0)
    assert scalings[1] == Scaling(1.04, 1.04, 240 / 224)
    assert len(set(scalings)) == 48
