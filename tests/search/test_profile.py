"""What a profile says is what counting the whole space says."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from analytic_problem import all_genotypes, small_feasibility, small_space
from mmengine.config import Config

from mmscale.arch import Scaling, SearchSpace
from mmscale.cost import CostTable, count
from mmscale.search import MCEA, FamilyFitness, Feasibility
from mmscale.search.feasibility import distinct_scalings
from mmscale.search.profile import Share, profile_search, sample_base_models

SPACES = Path(__file__).parents[2] / 'configs' / '_base_' / 'search_spaces'


@pytest.fixture(scope='module')
def family():
    return FamilyFitness(small_feasibility(), weights=[0, 1, 2])


@pytest.fixture(scope='module')
def report(family):
    most = MCEA(family, population=8, generations=5, rounds=2).most_evaluations
    return profile_search(family.feasibility.table, family, most)


def near(share, exact):
    return abs(share.value - exact) <= 4 * share.error + 1e-12


def test_base_models_are_drawn_equally_often():
    genes = sample_base_models(small_space(), np.random.default_rng(0), 200_000)
    drawn, counts = np.unique(genes, axis=0, return_counts=True)
    assert (drawn == all_genotypes(small_space())).all()
    expected = len(genes) / len(drawn)
    assert np.abs(counts / expected - 1).max() < 6 / expected**0.5


def test_shares_are_those_of_the_whole_space(report):
    space, feasibility = small_space(), small_feasibility()
    genes = all_genotypes(space)
    mask = feasibility.base_feasible(genes)
    assert near(report.stages[0].admitted, mask.mean())
    genes = genes[mask]
    met = np.ones(len(genes), dtype=bool)
    for j in (1, 2):
        meets = np.stack(
            [feasibility.scaled_feasible(genes, j, s) for s in distinct_scalings(space, j)]
        )
        assert near(report.stages[j].admitted, meets.mean())
        assert near(report.stages[j].scalable, meets.any(axis=0).mean())
        met &= meets.any(axis=0)
    assert near(report.scalable, met.mean())
    assert 0 < report.stages[1].admitted.value < 1


def test_scalings_and_networks(report):
    space = small_space()
    for j, stage in enumerate(report.stages):
        assert stage.nominal_scalings == len(space.scalings(j))
        assert stage.distinct_scalings == len(distinct_scalings(space, j))
        assert stage.smallest.cost == count(space.smallest(j))
        assert stage.largest.cost == count(space.largest(j))
        assert stage.smallest.cost.flops < stage.middle.cost.flops < stage.largest.cost.flops
    assert report.base_models == space.size == 1176
    assert report.families == 1176 * 64 * 48
    assert [stage.weight for stage in report.stages] == [0, 1, 2]


def test_the_papers_multipliers_mean_few_networks():
    table = CostTable(SearchSpace(**Config.fromfile(SPACES / 'scalenet.py')['space']))
    report = profile_search(table, FamilyFitness(Feasibility(table, 340e6)), 1000)
    assert [s.nominal_scalings for s in report.stages] == [1, 48, 75, 147]
    assert [s.distinct_scalings for s in report.stages] == [1, 12, 45, 42]
    assert report.stages[0].smallest.cost.flops == 176_513_152
    assert report.stages[3].largest.cost.flops == 8_097_755_417
    # All base models meet twice, four and eight times their flops by some scaling.
    assert report.scalable.value == 1
    assert report.most_flops == pytest.approx(1000 * 340e6 * 14 / 3, rel=0.02)


def test_a_search_without_a_family_has_no_budgets():
    report = profile_search(CostTable(small_space()), None, 50)
    assert report.budget is report.metric is report.scalable is report.most_flops is None
    assert all(stage.admitted is stage.scalable is None for stage in report.stages)
    assert report.most_evaluations == 50


def test_budgets_that_nothing_meets():
    family = FamilyFitness(Feasibility(CostTable(small_space()), 600_000, tolerance=1e-9))
    report = profile_search(family.feasibility.table, family, 50)
    assert report.stages[0].admitted.value == 0
    assert report.stages[1].admitted is report.scalable is report.most_flops is None


def test_it_is_plain_json(report):
    data = json.loads(json.dumps(report.to_json()))
    assert data['stages'][0]['smallest']['cost']['flops'] == count(small_space().smallest(0)).flops
    assert data['scalable']['sample'] == report.scalable.sample
    assert data['most_evaluations'] == report.most_evaluations


def test_a_share_has_the_binomial_error():
    share = Share.of(np.array([True, False, False, False] * 25))
    assert (share.value, share.sample) == (0.25, 100)
    assert share.error == pytest.approx((0.25 * 0.75 / 100) ** 0.5)
    assert str(share) == '25 ± 4 %'
    assert Share.of(np.array([])) is None
    assert str(replace(share, value=0.00136, error=0.0001)) == '0.136 ± 0.01 %'


def test_the_base_model_costs_what_the_budget_says(report):
    rows = sample_base_models(small_space(), np.random.default_rng(1), 2000)
    rows = rows[small_feasibility().base_feasible(rows)]
    flops = small_feasibility().table.costs(rows, Scaling()).flops.mean()
    assert report.most_flops == pytest.approx(report.most_evaluations * 3 * flops, rel=0.05)
