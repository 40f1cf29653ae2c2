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
    assert str(paper_space).splitlines() == [
        'SearchSpace: 2.239e+11 base models at 224 px, 29 genes; 1.185e+17 families over 4 '
        'scaling stages',
        '  network stage  channels  stride  expand  depths   kernels',
        '  1              16        1       1       1        3 5 7',
        '  2              32        2       6       1 2 3 4  3 5 7',
        '  3              40        2       6       1 2 3 4  3 5 7',
        '  4              80        2       6       1 2 3 4  3 5 7',
        '  5              96        1       6       1 2 3 4  3 5 7',
        '  6              192       2       6       1 2 3 4  3 5 7',
        '  7              320       1       6       1        3 5 7',
        '  scaling stage  depth                    width                    resolution   '
        'nominal scalings',
        '  0              1                        1                        224          1',
        '  1              1.04 1.08 1.12 1.16      1.04 1.08 1.12 1.16      224 240 256  48',
        '  2              1.2 1.24 1.28 1.32 1.36  1.2 1.24 1.28 1.32 1.36  272 288 304  75',
        '  3              1.4 to 1.64 (7)          1.4 to 1.64 (7)          320 336 354  147',
    ]


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


@pytest.mark.parametrize(
    ('genes', 'message'),
    [
        ([0] * 28, r'genes of shape \(1, 28\): expected \(n, 29\)'),
        ([0] * 28 + [3], r'gene 28=3 must lie in 0\.\.2'),
        ([-1] + [0] * 28, r'gene 0=-1 must lie in 0\.\.0'),
        ([0.5] * 29, r'genes of type float64: expected integers'),
        ([[0] * 29, [1] * 29], r'genes of shape \(2, 29\): expected \(29,\)'),
    ],
)
def test_bad_genes(paper_space, genes, message):
    with pytest.raises(ValueError, match=message):
        paper_space.decode(np.array(genes))
    with pytest.raises(ValueError, match=message):
        paper_space.genotype(np.array(genes))


def test_bad_scaling_stage(paper_space):
    with pytest.raises(ValueError, match=r'scaling_stage=4 must lie in 0\.\.3'):
        paper_space.scalings(4)
    with pytest.raises(ValueError, match=r'scaling_stage=-1 must lie in 0\.\.3'):
        paper_space.scalings(-1)


# ---------------------------------------------------------------- bad configs

BAD_CONFIGS = [
    (('stages', 1), 'ratio', 6, r'space\.stages\[1\]: unknown key ratio; allowed are channels'),
    (('scaling_stages', 2), 'res', [3], r'space\.scaling_stages\[2\]: unknown key res; allowed'),
    (('stem',), 'width', 3, r'space\.stem: unknown key width; allowed are channels, kernel, st'),
    (('head',), 'dropout', 0.2, r'space\.head: unknown key dropout; allowed are channels'),
    (('se',), 'ratio', 4, r'space\.se: unknown key ratio; allowed are act, gate'),
    (('se',), 'gate', 'tanh', r"se: gate='tanh' is not one of sigmoid, hsigmoid"),
    ((), 'se', 4, r'space\.se: expected an object, got int 4'),
    ((), 'act', 'gelu', r"act='gelu' is not one of relu, "),
    ((), 'rule', 'timm', r"rule='timm' is not one of search, retraining"),
    ((), 'num_classes', 0, r'space\.num_classes=0 must be an integer of 1 or more'),
    ((), 'in_channels', True, r'space\.in_channels=True must be an integer of 1 or more'),
    ((), 'stages', [], r'space\.stages=\[\] must be a non-empty list'),
    ((), 'stages', None, r'space\.stages=None must be a non-empty list'),
    ((), 'scaling_stages', {}, r'space\.scaling_stages=\{\} must be a non-empty list'),
    (('stages',), 1, 'mbconv', r"space\.stages\[1\]: expected an object, got str 'mbconv'"),
    (('stem',), 'kernel', 4, r'stem: kernel=4 must be odd'),
    (('head',), 'channels', -1, r'space\.head\.channels=-1 must be an integer of 1 or more'),
    (('stages', 1), 'channels', 1.5, r'space\.stages\[1\]\.channels=1.5 must be an integer'),
    (
        ('stages', 1),
        'channels',
        2**20,
        r'hidden_channels=6291456 must be an integer in 1\.\.1048576',
    ),
    (('stages', 1), 'kernels', [3, 4], r'space\.stages\[1\]\.kernels: 4 must be odd'),
    (('stages', 1), 'kernels', [5, 3], r'space\.stages\[1\]\.kernels=\[5, 3\] must be ascending'),
    (('stages', 1), 'kernels', [3, 3], r'space\.stages\[1\]\.kernels=\[3, 3\] must be ascending'),
    (('stages', 1), 'kernels', [], r'space\.stages\[1\]\.kernels=\[\] must be a non-empty list'),
    (('stages', 1), 'kernels', 3, r'space\.stages\[1\]\.kernels=3 must be a non-empty list'),
    (('stages', 1), 'kernels', '35', r"space\.stages\[1\]\.kernels='35' must be a non-empty"),
    (('stages', 1), 'depths', [0, 1], r'space\.stages\[1\]\.depths\[0\]=0 must be an integer'),
    (('stages', 1), 'depths', [1.0], r'space\.stages\[1\]\.depths\[0\]=1.0 must be an integer'),
    (('stages', 1), 'depths', [True], r'space\.stages\[1\]\.depths\[0\]=True must be an integer'),
    (('scaling_stages', 1), 'depth', [1.2, 1.1], r'scaling_stages\[1\]\.depth=.* be ascending'),
    (('scaling_stages', 1), 'width', [0.9, 1], r'scaling_stages\[1\]\.width: 0.9 must be 1 or'),
    (
        ('scaling_stages', 1),
        'width',
        [float('nan')],
        r'scaling_stages\[1\]\.width\[0\]=nan must be',
    ),
    (('scaling_stages', 1), 'depth', [float('inf')], r'depth\[0\]=inf must be a number above 0'),
    (
        ('scaling_stages', 1),
        'resolution',
        [1.5],
        r'scaling_stages\[1\]\.resolution\[0\]=1.5 must be',
    ),
    (('scaling_stages', 0), 'width', [1.0, 1.1], r'scaling_stages\[0\] is the base model'),
    (('scaling_stages', 0), 'depth', [1.04], r'scaling_stages\[0\] is the base model'),
    (('scaling_stages', 0), 'resolution', [224, 240], r'scaling_stages\[0\] is the base model'),
]


@pytest.mark.parametrize(('path', 'key', 'value', 'message'), BAD_CONFIGS)
def test_bad_configs_name_key_and_value(paper_config, path, key, value, message):
    config = copy.deepcopy(paper_config)
    part = config
    for step in path:
        part = part[step]
    part[key] = value
    with pytest.raises(ValueError, match=message) as error:
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
    with pytest.raises(TypeError, match='widths'):
        SearchSpace(**paper_config, widths=[1])


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
