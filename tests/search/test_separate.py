"""A search per scaling stage, and plain evolution at one budget."""

import json

import numpy as np
import pytest
from analytic_problem import (
    AnalyticEvaluator,
    all_genotypes,
    analytic_score,
    make_family,
    make_scorer,
    run_ranks,
    small_feasibility,
    small_space,
)

from mmscale.arch import Scaling
from mmscale.search import MCEA, EvolutionSearch, Feasibility, Generation, SeparateSearch

SCHEDULE = dict(population=8, generations=4, rounds=2, num_base_models=3)


def as_bytes(result):
    return json.dumps(result.to_json()).encode()


def run(directory, **kwargs):
    return SeparateSearch(make_family(), **SCHEDULE).run(make_scorer(directory, **kwargs))


@pytest.fixture(scope='module')
def result(tmp_path_factory):
    return run(tmp_path_factory.mktemp('search'))


def best_of_one_stage(scaling_stage):
    """The best score of any base model and scaling within the budgets of one scaling stage."""
    space, feasibility = small_space(), small_feasibility()
    genotypes = all_genotypes(space)
    genotypes = genotypes[feasibility.base_feasible(genotypes)]
    best = 0
    for scaling in space.scalings(scaling_stage) if scaling_stage else [Scaling()]:
        fits = np.ones(len(genotypes), dtype=bool)
        if scaling_stage:
            fits = feasibility.scaled_feasible(genotypes, scaling_stage, scaling)
        for genes in genotypes[fits]:
            best = max(best, analytic_score(space.decode(genes, scaling)).value)
    return best


def test_every_scaling_stage_gets_a_network_of_its_own(result):
    space, feasibility = small_space(), small_feasibility()
    for j, member in enumerate(result.family):
        assert member.scaling_stage == j
        assert member.arch == space.decode(member.base, member.scaling)
        assert member.score == analytic_score(member.arch)
        row = np.array([member.base.genes])
        assert feasibility.base_feasible(row)[0]
        assert j == 0 or feasibility.scaled_feasible(row, j, member.scaling)[0]
        assert best_of_one_stage(j) * 98 / 100 <= member.score.value <= best_of_one_stage(j)
    assert result.fitness == sum(member.score.value for member in result.family[1:]) / 2
    data = json.loads(as_bytes(result))
    assert data['base']['genes'] == data['scaling_stages'][0]['genes']
    assert [s['genes'] for s in data['scaling_stages']] == [
        list(member.base.genes) for member in result.family
    ]


def test_it_is_an_upper_reference_of_the_joint_search_at_more_evaluations(tmp_path, result):
    joint = MCEA(make_family(), **SCHEDULE).run(make_scorer(tmp_path))
    assert result.fitness >= joint.fitness
    assert result.evaluations > joint.evaluations


def test_distinct_evaluations_are_counted_per_run_and_in_all(tmp_path):
    evaluator = AnalyticEvaluator()
    search = SeparateSearch(make_family(), **SCHEDULE)
    result = search.run(make_scorer(tmp_path, evaluator))
    assert len(evaluator.digests) == len(set(evaluator.digests)) == result.evaluations
    runs = result.details['runs']
    assert [run['scaling_stage'] for run in runs] == [0, 1, 2]
    assert max(run['evaluations'] for run in runs) < result.evaluations
    # The runs share base models' own scores, which each of them has at its end.
    assert result.evaluations <= sum(run['evaluations'] for run in runs)
    assert sum(run['evaluations'] for run in runs) <= search.most_evaluations
    assert [len(run['chain']) for run in runs] == [1, 5, 5]


def test_a_run_asks_for_nothing_of_the_other_scaling_stages(tmp_path):
    asked = []

    class Spy(AnalyticEvaluator):
        def evaluate(self, arch):
            asked.append(arch.resolution)
            return super().evaluate(arch)

    result = MCEA(make_family().alone(2), **SCHEDULE).run(make_scorer(tmp_path, Spy()))
    allowed = set(small_space().scaling_stages[2].resolution)
    assert set(asked[:-1]) <= allowed and asked[-1] == 32  # the base model, for the result
    assert result.strategy[1] == Scaling()


def test_budgets_of_other_scaling_stages_do_not_bind():
    full = small_feasibility()
    alone = Feasibility(full.table, full.budget, full.metric, full.tolerance, scaled_stages=[2])
    genotypes = all_genotypes(small_space())
    strategy = (Scaling(), Scaling(), Scaling(1.4, 1.1, 1.5))
    fits = full.base_feasible(genotypes) & full.scaled_feasible(genotypes, 2, strategy[2])
    assert (alone.feasible(genotypes, strategy) == fits).all() and fits.any()
    assert alone.distinct_scalings(1) == (Scaling(),)
    assert alone.distinct_scalings(2) == full.distinct_scalings(2)


def test_runs_have_seeds_of_their_own_and_ranks_agree(tmp_path, result):
    assert as_bytes(run(tmp_path / 'again')) == as_bytes(result)
    other = SeparateSearch(make_family(), **SCHEDULE, seed=1).run(make_scorer(tmp_path / 'b'))
    for mine, theirs in zip(result.details['runs'], other.details['runs'], strict=True):
        assert mine['chain'] != theirs['chain']
    seeds = [run.seed for run in SeparateSearch(make_family(), **SCHEDULE).runs]
    assert len(set(seeds)) == 3

    def work(communicator):
        return as_bytes(run(tmp_path / 'ranks', communicator=communicator))

    assert run_ranks(2, work) == [as_bytes(result)] * 2


def test_a_cut_archive_is_replayed_to_the_identical_result(tmp_path, result):
    run(tmp_path)
    archive = tmp_path / 'rank0000.jsonl'
    lines = archive.read_bytes().splitlines(keepends=True)
    archive.write_bytes(b''.join(lines[: len(lines) // 2]))
    assert as_bytes(run(tmp_path)) == as_bytes(result)


def test_generations_say_what_they_are_part_of(tmp_path):
    steps, reports = [], []
    scorer = make_scorer(tmp_path, progress=reports.append)
    result = SeparateSearch(make_family(), **SCHEDULE).run(scorer, steps.append)
    assert all(isinstance(step, Generation) for step in steps)
    evaluations = [step.evaluations for step in steps]
    assert evaluations == sorted(evaluations) and evaluations[-1] <= result.evaluations
    assert steps[0].step == 'scaling stage 0 of 2, base evolution'
    assert steps[-1].step == 'scaling stage 2 of 2, round 2 of 2, base evolution'
    assert len(steps) == 8 * 3
    assert 'scaling stage 1 of 2, initial strategy' in {report.step for report in reports}
    assert scorer.evaluations == result.evaluations


def test_settings_are_checked(tmp_path, refuses):
    refuses(
        lambda **bad: SeparateSearch(make_family(), **{**SCHEDULE, **bad}),
        **{key: [0] for key in ('population', 'generations', 'rounds')},
        num_base_models=[-1],
    )


def test_plain_evolution_knows_one_budget(tmp_path):
    evaluator = AnalyticEvaluator()
    search = EvolutionSearch(make_family([0, 1, 1]), population=8, generations=6)
    result = search.run(make_scorer(tmp_path, evaluator))
    (member,) = result.family
    assert member.score.value == result.fitness == result.chain[0].fitness
    assert member.score.value >= best_of_one_stage(0) * 98 / 100
    assert small_feasibility().base_feasible(np.array([result.base.genes]))[0]
    assert result.evaluations == len(evaluator.digests) == 48 <= search.most_evaluations
    assert result.settings['weights'] == [1, 0, 0]
    assert len(json.loads(as_bytes(result))['scaling_stages']) == 1


def test_evaluations_are_shared_between_the_scaling_stages(tmp_path):
    search = SeparateSearch(make_family(), evaluations=62, surrogate=False)
    result = search.run(make_scorer(tmp_path))
    own = [one['evaluations'] for one in result.details['runs']]
    # Each run has a score of what it scales, too.
    assert all(18 <= number <= 20 + 2 for number in own)
    assert result.evaluations <= search.most_evaluations
    assert result.settings['evaluations'] == 62
    with pytest.raises(ValueError, match='evaluations=2 must be'):
        SeparateSearch(make_family(), evaluations=2)
