"""Budgets by table, and what is said when they cannot be met."""

import re

import numpy as np
import pytest
from analytic_problem import BUDGET, TOLERANCE, all_genotypes, small_feasibility, small_space
from hypothesis import given
from hypothesis import strategies as st

from mmscale.arch import Scaling
from mmscale.cost import CostTable, count
from mmscale.search import Feasibility


@pytest.mark.parametrize(
    'strategy',
    [
        (Scaling(), Scaling(1.2, 1.2, 1.0), Scaling(1.4, 1.1, 1.5)),
        (Scaling(), Scaling(1.2, 1.0, 1.125), Scaling(2.0, 1.2, 1.25)),
        (Scaling(), Scaling(1.0, 1.2, 1.25), Scaling(1.4, 1.3, 1.25)),
    ],
)
def test_masks_equal_counts_of_the_decoded_networks(strategy):
    space, feasibility = small_space(), small_feasibility()
    genes = all_genotypes(space)[::5]
    flops = [[count(space.decode(row, s)).flops for s in strategy] for row in genes]
    expected = [
        [abs(f[0] - BUDGET) <= TOLERANCE * BUDGET]
        + [abs(f[j] - 2**j * f[0]) <= TOLERANCE * 2**j * f[0] for j in (1, 2)]
        for f in flops
    ]
    assert feasibility.base_feasible(genes).tolist() == [row[0] for row in expected]
    for j in (1, 2):
        scaled = feasibility.scaled_feasible(genes, j, strategy[j])
        assert scaled.tolist() == [row[j] for row in expected]
    joint = feasibility.feasible(genes, strategy)
    assert joint.tolist() == [all(row) for row in expected]
    assert 0 < joint.sum() < min(sum(column) for column in zip(*expected, strict=True))


def test_admitted_scalings_are_those_that_meet_the_budget():
    space, feasibility = small_space(), small_feasibility()
    genes = all_genotypes(space)[::97]
    base = [count(space.decode(row)).flops for row in genes]
    for j in (1, 2):
        admitted = feasibility.admitted(genes, j)
        assert 0 < admitted.mean() < 1
        for mask, scaling in zip(admitted, feasibility.distinct_scalings(j), strict=True):
            flops = [count(space.decode(row, scaling)).flops for row in genes]
            pairs = zip(flops, base, strict=True)
            assert mask.tolist() == [abs(f / (b * 2**j) - 1) <= TOLERANCE for f, b in pairs]


def test_the_budget_may_be_any_column():
    table = CostTable(small_space())
    params = table.costs(all_genotypes(small_space())).params
    feasibility = Feasibility(table, int(np.median(params)), metric='params', tolerance=0.02)
    expected = np.abs(params / np.median(params) - 1) <= 0.02
    assert 0 < expected.sum() < len(params)
    assert (feasibility.base_feasible(all_genotypes(small_space())) == expected).all()


def test_distinct_scalings_of_the_paper(paper_space):
    feasibility = Feasibility(CostTable(paper_space), 330e6)
    distinct = [feasibility.distinct_scalings(j) for j in range(4)]
    assert [len(scalings) for scalings in distinct] == [1, 12, 45, 42]
    assert {s.depth for s in distinct[1]} == {1.04}
    assert {s.depth for s in distinct[2]} == {1.2, 1.28, 1.36}
    assert {s.depth for s in distinct[3]} == {1.4, 1.52}


@pytest.mark.parametrize('scaling_stage', [1, 2])
def test_scalings_of_a_base_are_its_distinct_feasible_archs(scaling_stage):
    space, feasibility = small_space(), small_feasibility()
    base = feasibility.draw(np.random.default_rng(0), 1)[0]
    found = feasibility.scalings_of(base, scaling_stage)
    expected = {
        space.decode(base, scaling)
        for scaling in space.scalings(scaling_stage)
        if feasibility.scaled_feasible(base[None], scaling_stage, scaling)[0]
    }
    assert len(found) == len(expected)
    assert {arch for _, arch in found} == expected
    assert all(space.decode(base, scaling) == arch for scaling, arch in found)


def test_the_present_scaling_stands_for_its_arch():
    space, feasibility = small_space(), small_feasibility()
    base = feasibility.draw(np.random.default_rng(0), 1)[0]
    first, arch = feasibility.scalings_of(base, 1)[-1]
    same = [s for s in space.scalings(1) if space.decode(base, s) == arch]
    assert len(same) > 1 and same[-1] != first
    found = feasibility.scalings_of(base, 1, present=same[-1])
    assert found[0] == (same[-1], arch)
    assert len(found) == len(feasibility.scalings_of(base, 1))


@given(seed=st.integers(0, 2**32))
def test_draws_are_distinct_feasible_and_canonical(seed):
    space, feasibility = small_space(), small_feasibility()
    rng = np.random.default_rng(seed)
    taken = feasibility.draw(rng, 3)
    seen = {row.tobytes() for row in taken}
    genes = feasibility.draw(rng, 6, seen=seen)
    assert len(genes) == 6 and len(seen) == 9
    assert feasibility.base_feasible(genes).all()
    assert (space.canonicalise(genes) == genes).all()


def test_a_draw_finds_all_there_is_and_stops():
    space, feasibility = small_space(), small_feasibility()
    genotypes = all_genotypes(space)
    feasible = genotypes[feasibility.base_feasible(genotypes)]
    drawn = feasibility.draw(np.random.default_rng(0), 10_000)
    assert {tuple(row) for row in drawn} == {tuple(row) for row in feasible}
    rest = feasibility.draw(np.random.default_rng(1), 5, seen={r.tobytes() for r in drawn})
    assert rest.shape == (0, space.num_genes)


@given(seed=st.integers(0, 2**32))
def test_repair_reaches_the_budgets_and_keeps_what_meets_them(seed):
    space, feasibility = small_space(), small_feasibility()
    rng = np.random.default_rng(seed)
    genes = space.sample(rng, 40)
    before = genes.copy()
    repaired = feasibility.repair(genes, (Scaling(),), rng)
    assert feasibility.base_feasible(repaired).all()
    assert len(repaired) >= 38
    assert (genes == before).all()
    kept = genes[feasibility.base_feasible(genes)]
    assert {tuple(row) for row in kept} <= {tuple(row) for row in repaired}


def test_repair_finds_what_sampling_hardly_does(paper_space):
    feasibility = Feasibility(CostTable(paper_space), 190e6, tolerance=0.02)
    rng = np.random.default_rng(0)
    assert feasibility.base_feasible(paper_space.sample(rng, 30_000)).mean() < 0.001
    genes = feasibility.draw(rng, 200)
    assert len(genes) == 200
    assert feasibility.base_feasible(genes).all()


@pytest.mark.parametrize('budget', [1_000, 10**9])
def test_an_impossible_budget_names_the_reachable_range(budget):
    flops = CostTable(small_space()).costs(all_genotypes(small_space())).flops
    expected = f'budget={budget:,} flops is out of reach.*{flops.min():,} to {flops.max():,}'
    with pytest.raises(ValueError, match=expected):
        Feasibility(CostTable(small_space()), budget)


def test_settings_are_checked(refuses):
    refuses(
        lambda **bad: Feasibility(CostTable(small_space()), **{'budget': BUDGET, **bad}),
        budget=[0, '300M', float('nan')],
        tolerance=[1.5, -0.1],
        metric=['latency'],
    )


def test_a_gap_at_the_budget_is_explained():
    flops = np.unique(CostTable(small_space()).costs(all_genotypes(small_space())).flops)
    gap = np.argmax(np.diff(flops) / flops[:-1])
    middle = int(flops[gap] + flops[gap + 1]) // 2
    feasibility = Feasibility(CostTable(small_space()), middle, tolerance=1e-4)
    rng = np.random.default_rng(0)
    assert not len(feasibility.draw(rng, 1))
    message = feasibility.explain_empty((Scaling(),), rng)
    below, above = map(float, re.search(r'within reach (\S+) and (\S+)$', message).groups())
    assert 'scaling stage 0' in message and 'tolerance of 0.0001' in message
    assert np.isclose([below * middle, above * middle], flops[gap : gap + 2], rtol=1e-3).all()


def test_no_scaling_for_a_base_names_stage_tolerance_and_nearest():
    space = small_space()
    feasibility = Feasibility(CostTable(space), BUDGET, tolerance=1e-6)
    base = all_genotypes(space)[300]
    flops = count(space.decode(base)).flops
    ratios = np.array([count(space.decode(base, s)).flops / flops for s in space.scalings(2)])
    with pytest.raises(ValueError) as error:
        feasibility.scalings_of(base, 2)
    message = str(error.value)
    assert message.startswith('scaling stage 2:') and 'tolerance of 1e-06' in message
    nearest = f'{ratios[ratios < 4].max():.4g} and {ratios[ratios >= 4].min():.4g}'
    assert message.endswith(f'nearest within reach {nearest}')


def test_a_strategy_that_fits_no_base_is_explained():
    feasibility = small_feasibility()
    strategy = (Scaling(), Scaling(), Scaling())
    rng = np.random.default_rng(0)
    assert not len(feasibility.draw(rng, 1, strategy))
    assert feasibility.explain_empty(strategy, rng).startswith('scaling stage 1: Scaling(')
