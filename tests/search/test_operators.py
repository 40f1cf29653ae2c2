"""Evolution operators: canonical, live genes only, at network-stage boundaries."""

import numpy as np
from analytic_problem import all_genotypes, small_space
from hypothesis import given, settings
from hypothesis import strategies as st
from random_spaces import spaces

from mmscale.arch import SearchSpace
from mmscale.search.operators import crossover, mutate, randomise_dead, take_new, tournament

SEEDS = st.integers(0, 2**32)


def sampled(space, seed, number=16):
    rng = np.random.default_rng(seed)
    return space.sample(rng, number), rng


@given(seed=SEEDS)
def test_a_mutant_is_canonical_and_another_arch(seed):
    space = small_space()
    parents, rng = sampled(space, seed)
    children = mutate(space, parents, rng)
    assert (space.canonicalise(children) == children).all()
    for parent, child in zip(parents, children, strict=True):
        assert space.decode(parent) != space.decode(child)


@given(seed=SEEDS)
def test_a_mutant_changes_only_genes_that_live_in_parent_or_child(seed):
    space = small_space()
    parents, rng = sampled(space, seed)
    children = mutate(space, parents, rng)
    changed = parents != children
    live = space.live(parents)
    assert not (changed & ~live & ~space.live(children)).any()
    # A gene that was dead lives only because its network stage got deeper.
    deeper = (space.depths(children) > space.depths(parents))[:, space.gene_stage]
    assert not (changed & ~live & ~deeper).any()


def test_about_one_live_gene_changes(paper_space):
    rng = np.random.default_rng(0)
    parents = paper_space.sample(rng, 4000)
    children = mutate(paper_space, parents, rng)
    live = paper_space.live(parents)
    changes = ((parents != children) & live & paper_space.live(children)).sum(axis=1)
    assert 1.0 < changes.mean() < 1.5  # 1 + (1 - 1/n)^n = 1.37, less genes that died.
    more = mutate(paper_space, parents, np.random.default_rng(0), changes=4.0)
    assert ((parents != more) & live).sum(axis=1).mean() > 3


def test_every_live_gene_mutates_equally_often(paper_space):
    rng = np.random.default_rng(1)
    parents = np.repeat(paper_space.sample(rng, 1), 20_000, axis=0)
    live = np.flatnonzero(paper_space.live(parents[:1])[0])
    depth_genes = paper_space.gene_slot < 0
    children = mutate(paper_space, parents, rng)
    rates = (parents != children)[:, live[depth_genes[live]]].mean(axis=0)
    assert np.ptp(rates) < 0.015
    assert rates.mean() * len(live) > 1.2


def test_new_blocks_get_random_kernels():
    space = small_space()
    shallow = np.zeros((400, space.num_genes), dtype=np.int64)
    children = mutate(space, shallow, np.random.default_rng(0))
    column = np.flatnonzero((space.gene_stage == 1) & (space.gene_slot == 1))[0]
    deeper = children[space.depths(children)[:, 1] > 1]
    assert set(deeper[:, column]) == {0, 1}


def test_dead_genes_are_randomised_and_live_ones_kept():
    space = small_space()
    genes, rng = sampled(space, 0, 200)
    filled = randomise_dead(space, genes, rng)
    assert (space.canonicalise(filled) == genes).all()
    assert (filled != genes).any()


@given(seed=SEEDS)
def test_crossover_takes_neighbouring_stages_from_the_second_parent(seed):
    space = small_space()
    first, rng = sampled(space, seed)
    second = space.sample(rng, len(first))
    children = crossover(space, first, second, rng)
    assert (space.canonicalise(children) == children).all()
    for a, b, child in zip(first, second, children, strict=True):
        origin = []
        for stage in range(len(space.stages)):
            genes = space.gene_stage == stage
            from_a, from_b = (child[genes] == a[genes]).all(), (child[genes] == b[genes]).all()
            assert from_a or from_b
            origin.append('?' if from_a and from_b else 'a' if from_a else 'b')
        assert 'bab' not in ''.join(origin)


def test_crossover_takes_some_but_never_all():
    space = small_space()
    first = np.zeros((300, space.num_genes), dtype=np.int64)
    second = space.canonicalise(np.repeat(space.num_choices[None] - 1, 300, axis=0))
    children = crossover(space, first, second, np.random.default_rng(0))
    taken = {tuple(row) for row in space.depths(children) > 1}
    # The last network stage is the first parent's: which parent is first is a matter of chance.
    assert taken == {(True, False, False), (False, True, False), (True, True, False)}


def test_crossover_of_one_network_stage_returns_the_first_parent():
    space = SearchSpace(
        stages=[dict(channels=8, depths=[1, 2], kernels=[3, 5])],
        scaling_stages=[dict(depth=[1], width=[1], resolution=[32])],
        stem=dict(channels=8),
        head=dict(channels=16),
        num_classes=2,
    )
    genotypes = all_genotypes(space)
    children = crossover(space, genotypes, genotypes[::-1], np.random.default_rng(0))
    assert (children == genotypes).all()


def test_a_space_of_one_model_cannot_mutate():
    space = SearchSpace(
        stages=[dict(channels=8, depths=[2], kernels=[3])],
        scaling_stages=[dict(depth=[1], width=[1], resolution=[32])],
        stem=dict(channels=8),
        head=dict(channels=16),
        num_classes=2,
    )
    genes = np.zeros((3, space.num_genes), dtype=np.int64)
    assert (mutate(space, genes, np.random.default_rng(0)) == 0).all()


@settings(max_examples=150)
@given(space=spaces(), seed=SEEDS)
def test_operators_on_any_space_give_other_canonical_base_models(space, seed):
    parents, rng = sampled(space, seed, 12)
    filled = randomise_dead(space, parents, rng)
    assert (space.canonicalise(filled) == parents).all()
    mutants = mutate(space, parents, rng)
    children = crossover(space, parents, parents[::-1], rng)
    for genes in (mutants, children):
        assert (space.canonicalise(genes) == genes).all()
    if space.size > 1:
        pairs = zip(parents, mutants, strict=True)
        assert all(space.decode(parent) != space.decode(mutant) for parent, mutant in pairs)


@settings(max_examples=60)
@given(space=spaces(most=300), seed=SEEDS)
def test_mutations_reach_every_base_model(space, seed):
    found, rng = sampled(space, seed, 1)
    for _ in range(200):
        if len(found) == space.size:
            break
        parents = np.repeat(found, -(-256 // len(found)), axis=0)
        found = np.unique(np.concatenate([found, mutate(space, parents, rng, 0.1)]), axis=0)
    assert len(found) == space.size == len({space.decode(row) for row in found})


def skipping_space(skips):
    return SearchSpace(
        stages=[dict(channels=8, depths=[2, 3, 4], kernels=[3, 5, 7], skips=skips)],
        stem=dict(channels=8),
        head=dict(channels=16),
        num_classes=2,
        resolution=32,
    )


def kernels_of(space, genes):
    return [tuple(block.kernel for block in space.decode(row).blocks) for row in genes]


def test_blocks_are_taken_out_and_put_in_anywhere_but_first():
    space = skipping_space('anywhere')
    parent = space.genotype_of(dict(stages=[dict(blocks=[dict(kernel=k) for k in (7, 3, 5, 7)])]))
    parents = np.repeat([parent.genes], 6_000, axis=0)
    children = kernels_of(space, mutate(space, parents, np.random.default_rng(0), 1e-9))
    three = [child for child in children if len(child) == 3]
    shares = {child: three.count(child) / len(three) for child in set(three)}
    assert shares.keys() == {(7, 5, 7), (7, 3, 7), (7, 3, 5)}
    assert np.allclose(list(shares.values()), 1 / 3, atol=0.04)
    parent = space.genotype_of(dict(stages=[dict(blocks=[dict(kernel=7), dict(kernel=3)])]))
    parents = np.repeat([parent.genes], 6_000, axis=0)
    children = kernels_of(space, mutate(space, parents, np.random.default_rng(0), 1e-9))
    three = [child for child in children if len(child) == 3]
    # The 3 is before or after a random block.
    assert set(three) == {(7, 3, 3), (7, 3, 5), (7, 3, 7), (7, 5, 3), (7, 7, 3)}
    assert np.isclose(three.count((7, 3, 3)) / len(three), 1 / 3, atol=0.04)


def test_skips_at_the_end_change_the_last_blocks():
    space = skipping_space('end')
    parents = space.sample(np.random.default_rng(0), 2000)
    children = mutate(space, parents, np.random.default_rng(1), 1e-9)
    for parent, child in zip(kernels_of(space, parents), kernels_of(space, children), strict=True):
        common = min(len(parent), len(child))
        assert len(parent) == len(child) or parent[:common] == child[:common]


def test_genes_of_the_whole_network_cross_with_its_first_and_last_stage():
    stage = dict(channels=[8, 16], depths=[1, 2], kernels=[3, 5])
    space = SearchSpace(
        stages=[stage] * 3,
        stem=dict(channels=[8, 16]),
        head=dict(channels=[16, 32], hidden_channels=[8, 16]),
        num_classes=2,
        resolution=[32, 64],
    )
    first = np.zeros((300, space.num_genes), dtype=np.int64)
    second = space.canonicalise(np.repeat(space.num_choices[None] - 1, 300, axis=0))
    children = crossover(space, first, second, np.random.default_rng(0))
    column = {gene.name: i for i, gene in enumerate(space.genes)}
    early = space.depths(children)[:, 0] > 1
    assert 0 < early.mean() < 1
    assert (children[:, column['resolution']] == early).all()
    assert (children[:, column['stem']] == early).all()
    assert not children[:, [column['head_channels'], column['head_hidden_channels']]].any()


def test_tournaments_favour_the_first():
    winners = tournament(10, 20_000, 2, np.random.default_rng(0))
    counts = np.bincount(winners, minlength=10) / 20_000
    expected = [(2 * (10 - i) - 1) / 100 for i in range(10)]
    assert np.allclose(counts, expected, atol=0.01)


def test_take_new_drops_repeats_and_stops_at_the_limit():
    genes = np.array([[0, 1], [0, 1], [2, 3], [4, 5], [6, 7]])
    seen = {genes[2].tobytes()}
    assert take_new(genes, seen, 2).tolist() == [[0, 1], [4, 5]]
    assert take_new(genes, seen, 9).tolist() == [[6, 7]]
    assert take_new(genes, seen, 9).shape == (0, 2)
