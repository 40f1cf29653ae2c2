"""Spaces of all that a config can say: genotypes, equal networks, costs, places of a SuperNet."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_spaces import spaces

from mmscale.arch import HierarchicalSampler, Scaling, SearchSpace
from mmscale.arch.slots import variant_of
from mmscale.cost import CONVENTIONS, CostTable, count

SEEDS = st.integers(0, 2**32)


def all_genes(space):
    return np.array(list(itertools.product(*map(range, space.num_choices.tolist()))))


def draw(space, seed, size=40):
    """Genes that need not be canonical."""
    return np.random.default_rng(seed).integers(0, space.num_choices, (size, space.num_genes))


@settings(max_examples=40)
@given(spaces(most=400))
def test_every_base_model_has_one_genotype(space):
    raw = all_genes(space)
    canonical = space.canonicalise(raw)
    assert (space.canonicalise(canonical) == canonical).all()
    of_arch = {}
    for genes, tidy in zip(raw, canonical.tolist(), strict=True):
        of_arch.setdefault(space.decode(genes), set()).add(tuple(tidy))
    assert all(len(genotypes) == 1 for genotypes in of_arch.values())
    assert len(of_arch) == len(np.unique(canonical, axis=0)) == space.size


@settings(max_examples=60)
@given(spaces(), SEEDS)
def test_genotypes_go_to_networks_and_names_and_back(space, seed):
    for genes in space.canonicalise(draw(space, seed, 12)):
        assert space.encode(space.decode(genes)).genes == tuple(genes.tolist())
        choices = space.choices(genes)
        assert space.genotype_of(choices).genes == tuple(genes.tolist())
        blocks = [len(stage['blocks']) for stage in choices['stages']]
        assert tuple(blocks) == space.decode(genes).depths


@settings(max_examples=60)
@given(spaces(), SEEDS)
def test_a_gene_is_live_where_another_value_means_another_network(space, seed):
    genes = space.canonicalise(draw(space, seed, 3))
    live = space.live(genes)
    for row, alive in zip(genes, live, strict=True):
        own = space.decode(row)
        for gene, number in enumerate(space.num_choices.tolist()):
            others = set()
            for value in range(number):
                changed = row.copy()
                changed[gene] = value
                others.add(space.decode(changed))
            assert alive[gene] == (others != {own})


@settings(max_examples=60)
@given(spaces(), SEEDS, st.sampled_from(CONVENTIONS))
def test_table_is_count(space, seed, convention):
    table = CostTable(space, convention)
    genes = draw(space, seed, 12)
    scalings = [s for j in range(len(space.scaling_stages)) for s in space.scalings(j)]
    rng = np.random.default_rng(seed)
    for scaling in (Scaling(), scalings[rng.integers(len(scalings))], Scaling(0.5, 0.7, 1.9)):
        costs = table.costs(genes, scaling)
        for i, row in enumerate(genes):
            cost = count(space.decode(row, scaling), convention)
            found = tuple(int(column[i]) for column in costs)
            assert found == (cost.flops, cost.params, cost.acts)


@settings(max_examples=40)
@given(spaces(most=400), st.sampled_from(('flops', 'params', 'acts')))
def test_the_range_of_costs_is_reached_and_not_left(space, metric):
    table = CostTable(space)
    raw = all_genes(space)
    for scaling in (Scaling(), space.scalings(len(space.scaling_stages) - 1)[-1]):
        costs = getattr(table.costs(raw, scaling), metric)
        assert table.range(metric, scaling) == (costs.min(), costs.max())


@settings(max_examples=60)
@given(spaces(), SEEDS, st.booleans())
def test_every_network_fits_the_places_of_a_super_supernet(space, seed, both_sides):
    slots = space.slots(both_sides)
    whole = space.allocation if both_sides else space.widest
    assert whole.depths == tuple(map(len, slots))
    for row in draw(space, seed, 6):
        for j in range(len(space.scaling_stages)):
            for scaling in space.scalings(j)[:: max(1, len(space.scalings(j)) // 3)]:
                arch = space.decode(row, scaling)
                assert arch.resolution in space.resolutions
                assert arch.stem.out_channels <= whole.stem.out_channels
                assert arch.feature_channels <= whole.feature_channels
                for blocks, places in zip(arch.stages, slots, strict=True):
                    for block, place in zip(blocks, places, strict=False):
                        slot = place[variant_of(block, place)]
                        assert slot.admits(block)
                        assert slot.block.kind == block.kind


@settings(max_examples=40)
@given(spaces(), SEEDS)
def test_draws_have_the_resolution_that_was_said(space, seed):
    sampler = HierarchicalSampler(space, seed)
    for iteration in range(6):
        found = sampler.draw(iteration)
        assert found.arch.resolution == sampler.resolution(iteration)
        assert space.decode(found.genotype, found.scaling) == found.arch
        assert found.scaling in space.scalings(found.scaling_stage)


@given(spaces())
def test_ends_and_words(space):
    assert space.size >= 1
    text = str(space)
    assert ('ordinary search space' in text) == (len(space.scaling_stages) == 1)
    for j in range(len(space.scaling_stages)):
        low, high = space.smallest(j), space.largest(j)
        assert low.depths <= high.depths
        assert low.resolution <= high.resolution
    assert space.encode(space.largest(0)).genes == tuple(
        space.canonicalise(space.extreme(True)[None])[0].tolist()
    )


def test_a_width_of_one_group_belongs_to_the_groups():
    stage = dict(kind='bottleneck', stride=2, depths=[1, 2], kernels=3, group_widths=24)
    space = SearchSpace(
        stages=[dict(stage, channels=[24, 48]), dict(stage, channels=[96, 120])],
        scaling_stages=[
            dict(depth=[1], width=[1], resolution=[32]),
            dict(depth=[1, 1.5], width=[1.2, 1.5], resolution=[32]),
        ],
        stem=dict(channels=16),
        head=dict(channels=0),
        num_classes=10,
    )
    for both_sides in (True, False):
        # Scaled, one group stays one.
        names = [sorted(slots) for places in space.slots(both_sides) for slots in places]
        assert names[0] == ['bottleneck_dense', 'bottleneck_g24']
        assert names[-1] == ['bottleneck_g24']
        for slots in (slots for places in space.slots(both_sides) for slots in places):
            widths = {(slot.block.in_channels, slot.block.out_channels) for slot in slots.values()}
            assert len(widths) == 1
    narrow = space.smallest().stages[0][0]
    assert (narrow.hidden_channels, narrow.groups) == (24, 1)
    assert variant_of(narrow, space.slots(True)[0][0]) == 'bottleneck_g24'


def small(**stage):
    stage = dict(channels=[16, 24], stride=2, depths=[1, 2]) | stage
    if 'blocks' not in stage:
        stage.setdefault('kernels', [3, 5])
    return SearchSpace(
        stages=[stage],
        resolution=[32, 48],
        stem=dict(channels=[8, 16]),
        head=dict(channels=0),
        num_classes=10,
    )


def test_names_that_are_not_in_the_space_are_refused():
    config = dict(stages=[dict(channels=16, depths=[1, 2], kernels=3, expands=2)], num_classes=10)
    space = SearchSpace(**config, resolution=32, stem=dict(channels=8), head=dict(channels=0))
    whole = dict(channels=16, blocks=[dict(kernel=3, expand=2)])
    assert space.genotype_of(dict(stages=[whole], resolution=32, stem=8)).genes == (0, 0, 0)
    for network, stage, message in (
        (dict(resolution=999), {}, 'choices.resolution=999'),
        (dict(stem=7), {}, 'choices.stem=7'),
        (dict(head_channels=5), {}, 'choices.head_channels=5'),
        ({}, dict(channels=77), r'choices.stages\[0\].channels=77'),
        ({}, dict(blocks=5), r'choices.stages\[0\].blocks=5 must be a list'),
        ({}, dict(blocks=[None, {}]), 'with a first block'),
        ({}, dict(blocks=[{}, {}, {}]), 'none of the depths'),
        ({}, dict(blocks=[dict(expand=99)]), r'blocks\[0\].expand=99 is none of'),
        ({}, dict(blocks=[dict(kind='basic')]), r"blocks\[0\].kind='basic'"),
        ({}, dict(blocks=[dict(block={})]), 'nothing is tied'),
    ):
        with pytest.raises(ValueError, match=message):
            space.genotype_of(dict(network, stages=[dict(whole, **stage)]))
    tied = [dict(kernel=3, expand=3), dict(kernel=5, expand=6)]
    space = small(blocks=tied)
    ends = dict(resolution=32, stem=8)
    by_parts, by_name = (
        space.genotype_of(dict(ends, stages=[dict(channels=16, blocks=[block])]))
        for block in (tied[1], dict(block=tied[1]))
    )
    assert by_parts == by_name
    for block in (dict(kernel=3, expand=6), dict(block=tied[1], kernel=3)):
        with pytest.raises(ValueError, match=r'blocks\[0\]'):
            space.genotype_of(dict(ends, stages=[dict(channels=16, blocks=[block])]))


def test_names_leave_out_what_tied_choices_decide():
    tied = [dict(kernel=3), dict(act='relu')]
    for stage in (
        dict(blocks=tied, kernels=[1, 3, 5], share=dict(blocks='stage')),
        dict(kernels=[1, 3], first=dict(blocks=[dict(kernel=3)])),
    ):
        space = small(**stage)
        for genes in space.canonicalise(draw(space, 0)):
            assert space.genotype_of(space.choices(genes)).genes == tuple(genes.tolist())


BAD = {
    'channels': ([], 0, [24, 16], '16'),
    'kernels': ([], [4], 'x'),
    'expands': ([], [0], ['a'], [3, 3]),
    'kind': ([], ['mbconv', 'foo'], ['basic', 'basic']),
    'act': ('gelu', []),
    'se': ('yes', [True, True], dict(ratio=2), dict(divisor=8)),
    'group_widths': ([], [-1], [7]),
    'share': ('slot', dict(kernel='stage')),
    'skips': ('middle',),
    'blocks': ([], [3], [dict(expands=4)], [dict(kernel=[3, 5])], [dict(kernel=3)] * 2),
    'first': (3, dict(channels=8), dict(kernels=[2])),
}


@pytest.mark.parametrize('key', BAD)
def test_bad_choices_name_their_key(key):
    for value in BAD[key]:
        with pytest.raises(ValueError, match=rf'space\.stages\[0\]\.{key}') as error:
            small(**{key: value})
        assert '\n' not in str(error.value)


def test_choices_that_cannot_meet():
    for stage, message in (
        (
            dict(kind='bottleneck', group_widths=[8, 16], expands=0.5),
            '16 does not divide a hidden',
        ),
        (dict(kind='basic', se=True), r'\.se: blocks of kind basic have none'),
        (dict(kind='conv', expands=[2, 3]), r'\.expands: blocks of kind conv have none'),
        (dict(expand=3, expands=[3]), 'two names of one key'),
        (dict(blocks=[dict(kernel=3)], kernels=3), r'\.kernels: all of blocks name their own'),
        (dict(kernels=list(range(1, 399, 2)), expands=list(range(1, 300))), 'choices of a block'),
    ):
        with pytest.raises(ValueError, match=message):
            small(**stage)
    with pytest.raises(ValueError, match='give one of scaling_stages and resolution'):
        SearchSpace(
            stages=[dict(channels=8, depths=1, kernels=3)],
            stem=dict(channels=8),
            head=dict(channels=0),
            num_classes=10,
        )


def test_skips_anywhere_are_the_same_networks_drawn_otherwise():
    tied = [dict(kernel=3, expand=3), dict(kernel=5, expand=6)]
    given_ = dict(depths=[1, 2, 3], blocks=tied)
    end, anywhere = small(**given_), small(**given_, skips='anywhere')
    assert end.size == anywhere.size
    rng = np.random.default_rng(0)
    depths = anywhere.depths(anywhere.sample(rng, 9000))[:, 0]
    # Two places after the first, each empty with 1/3.
    found = [(depths == depth).mean() for depth in (1, 2, 3)]
    assert found == pytest.approx([1 / 9, 4 / 9, 4 / 9], abs=0.02)
    # A genotype by name may skip anywhere.
    choices = dict(resolution=32, stem=8)
    names = [{'block': part} for part in tied]
    one, two = (
        anywhere.genotype_of(dict(**choices, stages=[dict(channels=16, blocks=blocks)]))
        for blocks in (
            [names[0], None, names[1]],
            [names[0], names[1], None],
        )
    )
    assert one == two
