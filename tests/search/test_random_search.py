"""Random search: an honest baseline spends just what it is allowed, on feasible networks alone."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from analytic_problem import (
    AnalyticEvaluator,
    all_genotypes,
    make_family,
    make_scorer,
    optimum,
    run_ranks,
    small_feasibility,
    small_space,
)
from mmengine.config import Config

from mmscale.arch import SearchSpace
from mmscale.cost import CostTable, count
from mmscale.search import FamilyFitness, Feasibility, RandomSearch

PAPER_SPACE = Path(__file__).parents[2] / 'configs' / '_base_' / 'search_spaces' / 'scalenet.py'


def run(directory, evaluations=60, seed=0, evaluator=None, weights=None, **settings):
    search = RandomSearch(make_family(weights), evaluations, seed)
    return search.run(make_scorer(directory, evaluator, **settings))


def as_bytes(result):
    return json.dumps(result.to_json()).encode()


@pytest.fixture(scope='module')
def result(tmp_path_factory):
    return run(tmp_path_factory.mktemp('search'))


@pytest.mark.parametrize('evaluations', [3, 31])
def test_it_spends_what_it_may_and_no_more(tmp_path, evaluations):
    evaluator = AnalyticEvaluator()
    result = run(tmp_path, evaluations, evaluator=evaluator, weights=[1, 1, 1])
    assert len(evaluator.digests) == len(set(evaluator.digests)) == result.evaluations
    # What is left would not pay for another family of three networks.
    assert evaluations - 3 < result.evaluations <= evaluations


def test_only_scaling_stages_of_weight_0_cost_more(tmp_path):
    evaluator = AnalyticEvaluator()
    result = run(tmp_path, 60, evaluator=evaluator, weights=[0, 1, 1])
    base_models = {small_space().decode(genes).digest for genes in all_genotypes(small_space())}
    scored_bases = base_models & set(evaluator.digests)
    assert scored_bases == {result.family[0].arch.digest}
    assert result.evaluations == len(evaluator.digests) == 60 + len(scored_bases)
    assert result.chain[-1].evaluations <= 60


def test_no_infeasible_arch_is_ever_scored(tmp_path):
    space, feasibility = small_space(), small_feasibility()
    genotypes = all_genotypes(space)
    genotypes = genotypes[feasibility.base_feasible(genotypes)]
    allowed = {space.decode(genes).digest for genes in genotypes}
    for j in (1, 2):
        for scaling in space.scalings(j):
            feasible = genotypes[feasibility.scaled_feasible(genotypes, j, scaling)]
            allowed |= {space.decode(genes, scaling).digest for genes in feasible}
    evaluator = AnalyticEvaluator()
    run(tmp_path, 600, evaluator=evaluator, weights=[1, 1, 1])
    assert len(evaluator.digests) > 590
    assert set(evaluator.digests) <= allowed


def test_the_result_is_the_best_family_it_saw(tmp_path):
    seen = []

    class Spy(FamilyFitness):
        def mean(self, scores):
            seen.append(super().mean(scores))
            return seen[-1]

    result = RandomSearch(Spy(small_feasibility()), 80).run(make_scorer(tmp_path))
    assert len(seen) > 35
    assert result.fitness == max(seen) <= optimum()
    assert result.fitness > min(seen)


def test_the_chain_only_rises_and_ends_in_the_result(tmp_path):
    steps = []
    result = RandomSearch(make_family(), 200, seed=1).run(make_scorer(tmp_path), steps.append)
    assert tuple(steps) == result.chain and len(steps) > 2
    for before, after in itertools.pairwise(steps):
        better = after.fitness > before.fitness
        assert better or (after.fitness == before.fitness and after.cost < before.cost)
        assert after.round > before.round and after.evaluations >= before.evaluations
    last = steps[-1]
    assert (last.base, last.strategy, last.fitness) == (
        result.base,
        result.strategy,
        result.fitness,
    )


def test_the_result_is_consistent(result):
    assert small_feasibility().feasible(np.array([result.base.genes]), result.strategy).all()
    for member in result.family:
        assert member.arch == small_space().decode(result.base, member.scaling)
        assert member.cost == count(member.arch)
    assert result.fitness == sum(member.score.value for member in result.family[1:]) / 2
    data = json.loads(as_bytes(result))
    assert data['seed'] == 0 and data['settings']['evaluations'] == 60


def test_equal_seeds_give_equal_bytes_and_another_seed_does_not(tmp_path, result):
    assert as_bytes(run(tmp_path / 'a')) == as_bytes(result)
    other, evaluator = AnalyticEvaluator(), AnalyticEvaluator()
    run(tmp_path / 'b', seed=0, evaluator=evaluator)
    run(tmp_path / 'c', seed=1, evaluator=other)
    assert other.digests != evaluator.digests


def test_more_evaluations_never_end_worse(tmp_path):
    fitness = [run(tmp_path / str(n), n).fitness for n in (6, 20, 60, 200)]
    assert fitness == sorted(fitness) and fitness[0] < fitness[-1]


@pytest.mark.parametrize('kept', [0, 17, 59])
def test_a_cut_archive_is_replayed_to_the_identical_result(tmp_path, result, kept):
    run(tmp_path)
    archive = tmp_path / 'rank0000.jsonl'
    lines = archive.read_bytes().splitlines(keepends=True)
    # The header, some entries, and half of the next.
    archive.write_bytes(b''.join(lines[: 1 + kept]) + lines[1 + kept][:40])
    evaluator = AnalyticEvaluator()
    assert as_bytes(run(tmp_path, evaluator=evaluator)) == as_bytes(result)
    assert len(evaluator.digests) == result.evaluations - kept
    assert archive.read_bytes().splitlines(keepends=True) == lines


def test_what_the_archive_knows_besides_changes_nothing(tmp_path, result):
    run(tmp_path, 200, seed=5)
    assert as_bytes(run(tmp_path)) == as_bytes(result)


def test_ranks_find_the_same_as_one_process(tmp_path, result):
    def work(communicator):
        return as_bytes(run(tmp_path, communicator=communicator))

    assert run_ranks(2, work) == [as_bytes(result)] * 2
    assert len(list(tmp_path.glob('rank*.jsonl'))) == 2


def test_it_ends_when_every_base_model_was_drawn(tmp_path):
    """A space of 36 base models, all within the budget."""
    space = SearchSpace(
        stages=[
            dict(channels=8, depths=[1, 2], kernels=[3, 5]),
            dict(channels=8, stride=2, depths=[1, 2], kernels=[3, 5]),
        ],
        scaling_stages=[dict(depth=[1], width=[1], resolution=[16])],
        stem=dict(channels=8),
        head=dict(channels=32),
        num_classes=10,
    )
    sizes = CostTable(space).costs(all_genotypes(space)).flops
    budget = (sizes.min() + sizes.max()) / 2
    tolerance = sizes.max() / budget - 0.999
    feasibility = Feasibility(CostTable(space), float(budget), tolerance=float(tolerance))
    evaluator = AnalyticEvaluator()
    search = RandomSearch(FamilyFitness(feasibility), 1000)
    result = search.run(make_scorer(tmp_path, evaluator))
    assert result.evaluations == len(evaluator.digests) == space.size == 36


def test_it_draws_on_after_the_first_pool(tmp_path, monkeypatch):
    """With a pool smaller than what it may spend, it still spends all."""
    monkeypatch.setattr('mmscale.search.random_search._POOL', 16)
    evaluator = AnalyticEvaluator()
    result = run(tmp_path, 160, evaluator=evaluator)
    assert result.evaluations > 158
    assert len(evaluator.digests) == len(set(evaluator.digests))


def test_settings_are_checked(tmp_path, refuses):
    refuses(
        lambda **bad: RandomSearch(make_family(), **{'evaluations': 10, **bad}),
        evaluations=[1, 2.5, True],
        seed=[-1],
    )


def test_no_family_within_the_budgets_is_an_error_before_any_evaluation(tmp_path):
    evaluator = AnalyticEvaluator()
    feasibility = Feasibility(CostTable(small_space()), 600_000, tolerance=1e-6)
    with pytest.raises(ValueError, match='scaling stage 0: no base model meets the budget'):
        RandomSearch(FamilyFitness(feasibility), 50).run(make_scorer(tmp_path, evaluator))
    assert evaluator.digests == []


def test_a_scaling_stage_out_of_reach_is_an_error_in_a_space_too_large_to_exhaust(tmp_path):
    settings = Config.fromfile(PAPER_SPACE)['space'].to_dict()
    settings['scaling_stages'][3] = dict(depth=[1.0], width=[1.0], resolution=[224])
    evaluator = AnalyticEvaluator()
    feasibility = Feasibility(CostTable(SearchSpace(**settings)), 340e6)
    with pytest.raises(ValueError, match=r'scaling stage 3: .*wanted 8 x .*within reach 1$'):
        RandomSearch(FamilyFitness(feasibility), 50).run(make_scorer(tmp_path, evaluator))
    assert evaluator.digests == []


def test_progress_is_reported(tmp_path):
    reports = []
    result = run(tmp_path, progress=reports.append)
    assert {report.step for report in reports} == {'random families', 'result'}
    assert reports[-1].evaluations == result.evaluations
    # And the base model of the result, whose weight is 0.
    assert {report.most_evaluations for report in reports} == {61}
    assert reports[-1].best == result.fitness
