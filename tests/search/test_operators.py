"""Evolution operators: canonical, live genes only, at network-stage boundaries."""

import numpy as np
from analytic_problem import all_genotypes, small_space
from hypothesis import given
from hypothesis import strategies as st

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
