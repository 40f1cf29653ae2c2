"""CostTable against count(): two ways to one number."""

import numpy as np
import pytest

from mmscale.arch import Scaling, SearchSpace, get_arch
from mmscale.cost import CONVENTIONS, Cost, CostTable, count, count_parts

MIXED = dict(
    num_classes=10,
    in_channels=1,
    act='relu',
    stem=dict(channels=8, stride=1),
    head=dict(channels=40),
    rule='retraining',
    se=dict(),
    stages=[
        dict(channels=8, expand=1, depths=[1, 3], kernels=[3]),
        dict(channels=12, stride=3, expand=4, depths=[2], kernels=[1, 3, 5, 7]),
        dict(channels=12, expand=3, depths=[1, 2, 5], kernels=[5, 7]),
    ],
    scaling_stages=[
        dict(depth=[1], width=[1], resolution=[33]),
        dict(depth=[1, 1.5, 2.2], width=[1.1, 1.3], resolution=[33, 47]),
    ],
)


def row(costs, index):
    return Cost(*(int(column[index]) for column in costs))


@pytest.mark.parametrize('convention', CONVENTIONS)
def test_table_is_count_on_the_papers_space(paper_space, convention):
    table = CostTable(paper_space, convention)
    rng = np.random.default_rng(0)
    for scaling_stage in range(4):
        scalings = paper_space.scalings(scaling_stage)
        for _ in range(8):
            scaling = scalings[rng.integers(len(scalings))]
            genes = rng.integers(0, paper_space.num_choices, size=(12, paper_space.num_genes))
            costs = table.costs(genes, scaling)
            for i, genotype in enumerate(genes):
                assert row(costs, i) == count(paper_space.decode(genotype, scaling), convention)


@pytest.mark.parametrize('convention', CONVENTIONS)
def test_table_is_count_on_an_uneven_space(convention):
    space = SearchSpace(**MIXED)
    table = CostTable(space, convention)
    genes = np.unique(space.sample(np.random.default_rng(1), 60), axis=0)
    for scaling in (Scaling(), *space.scalings(1), Scaling(0.5, 0.7, 1.9), Scaling(3, 1, 1)):
        costs = table.costs(genes, scaling)
        for i, genotype in enumerate(genes):
            assert row(costs, i) == count(space.decode(genotype, scaling), convention)


def test_dead_genes_cost_nothing(paper_space):
    table = CostTable(paper_space)
    rng = np.random.default_rng(2)
    genes = rng.integers(0, paper_space.num_choices, size=(500, paper_space.num_genes))
    canonical = paper_space.canonicalise(genes)
    assert (genes != canonical).any(axis=1).mean() > 0.9
    for scaling in (Scaling(), paper_space.scalings(3)[-1]):
        for raw, tidy in zip(
            table.costs(genes, scaling), table.costs(canonical, scaling), strict=True
        ):
            assert raw.dtype == np.int64
            assert (raw == tidy).all()


def test_goldens_by_table(paper_space):
    genes = np.array([paper_space.encode(get_arch('scalenet-s0-search')).genes])
    table = CostTable(paper_space)
    base = table.costs(genes)
    assert (base.flops[0], base.params[0]) == (354_933_888, 6_686_680)
    scaled = table.costs(genes, paper_space.scaling(1.04, 1.04, 256))
    assert (scaled.flops[0], scaled.params[0]) == (799_963_638, 12_405_513)
    assert CostTable(paper_space, 'pycls').costs(genes).flops[0] == 354_943_448


def test_a_population_may_be_a_list_or_empty(paper_space):
    table = CostTable(paper_space)
    genes = paper_space.sample(np.random.default_rng(3), 3)
    assert (table.costs(genes.tolist()).flops == table.costs(genes).flops).all()
    assert table.costs(genes[:0]).flops.shape == (0,)


def test_costs_do_not_depend_on_what_was_asked_before(paper_space):
    genes = paper_space.sample(np.random.default_rng(4), 5)
    table = CostTable(paper_space)
    first = table.costs(genes)
    first.flops[:] = 0
    table.costs(genes, paper_space.scalings(2)[0])
    assert (table.costs(genes).flops == CostTable(paper_space).costs(genes).flops).all()
    assert (table.costs(genes).flops > 0).all()


def test_parts_sum_to_the_whole():
    arch = get_arch('scalenet-s3')
    for convention in CONVENTIONS:
        parts = count_parts(arch, convention)
        assert [part.name for part in parts] == [
            'stem',
            *(f'stage {i}' for i in range(1, 8)),
            'head',
        ]
        assert sum((part.cost for part in parts), Cost()) == count(arch, convention)
    assert [part.blocks for part in parts] == [0, *arch.depths, 0]
    assert [part.channels for part in parts] == [45, *arch.widths, 1000]
    # 354 px halved, rounded up: odd sizes stay exact.
    assert [part.size for part in parts] == [177, 177, 89, 45, 23, 23, 12, 12, 1]


def test_unknown_convention_and_bad_genes(paper_space):
    with pytest.raises(ValueError, match="convention='timm' is not one of mmscale, pycls"):
        count(get_arch('scalenet-s0'), 'timm')
    with pytest.raises(ValueError, match="convention='timm' is not one of mmscale, pycls"):
        CostTable(paper_space, 'timm')
    with pytest.raises(ValueError, match=r'genotype 0: gene 28=3 must lie in 0\.\.2'):
        CostTable(paper_space).costs(np.array([[0] * 28 + [3]]))
