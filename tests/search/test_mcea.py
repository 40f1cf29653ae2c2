"""The Markov chain from end to end on a problem whose optimum is known."""

import itertools
import json
from functools import partial

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

from mmscale.arch import Arch
from mmscale.cost import count
from mmscale.search import (
    MCEA,
    BaseEvolution,
    Batch,
    ChainStep,
    EvaluationError,
    EvolutionSearch,
    FamilyFitness,
    Generation,
    SeparateSearch,
)

SCHEDULE = dict(population=8, generations=5, rounds=2, num_base_models=4, surrogate=False)


def run(directory, seed=0, **settings):
    search = MCEA(make_family(), **{**SCHEDULE, **settings}, seed=seed)
    return search.run(make_scorer(directory))


def as_bytes(result):
    return json.dumps(result.to_json()).encode()


@pytest.fixture(scope='module')
def result(tmp_path_factory):
    return run(tmp_path_factory.mktemp('search'))


def test_the_chain_alternates_and_never_gets_worse(result):
    kinds = [(step.round, step.kind) for step in result.chain]
    assert kinds == [
        (0, 'initial strategy'),
        (1, 'base evolution'),
        (1, 'scaling search'),
        (2, 'base evolution'),
        (2, 'scaling search'),
    ]
    fitness = [step.fitness for step in result.chain[1:]]
    assert fitness == sorted(fitness)
    evaluations = [step.evaluations for step in result.chain]
    assert evaluations == sorted(evaluations) and evaluations[0] > 0
    for step in result.chain:
        if step.kind == 'base evolution':
            assert len(step.history) == 5 and step.history[-1] == step.fitness


def test_a_step_that_got_worse_would_be_noticed(tmp_path, monkeypatch):
    def forgetful(self, record, genes, present=None, *_):
        options = [self.family.feasibility.scalings_of(genes, j) for j in (1, 2)]
        scores = []
        for own in options:
            scores.append((yield Batch([arch for _, arch in own])))
        worst = [min(range(len(s)), key=lambda i: s[i].value) for s in scores]
        return (present[0], *(o[i][0] for o, i in zip(options, worst, strict=True)))

    monkeypatch.setattr('mmscale.search.strategy.StrategySearch.given_base', forgetful)
    with pytest.raises(AssertionError, match='the chain got worse'):
        run(tmp_path)


def test_the_result_is_consistent(result):
    space, feasibility = small_space(), small_feasibility()
    assert feasibility.feasible(np.array([result.base.genes]), result.strategy).all()
    for member in result.family:
        assert member.arch == space.decode(result.base, member.scaling)
        assert member.cost == count(member.arch)
    assert result.fitness == sum(m.score.value for m in result.family[1:]) / 2
    data = json.loads(as_bytes(result))
    assert Arch.from_json(data['base']['arch']) == result.family[0].arch
    assert [s['scaling_stage'] for s in data['scaling_stages']] == [0, 1, 2]
    assert data['seed'] == 0 and data['settings']['population'] == 8


def test_printing_says_what_was_found(result):
    lines = str(result).splitlines()
    assert f'fitness {float(result.fitness):.4f} ± ' in lines[0]
    assert f' after {result.evaluations} evaluations' in lines[0]
    assert f'chain: {len(result.chain)} steps' in lines[2]
    assert len(lines) == 5 + len(result.family)
    for member, line in zip(result.family, lines[4:-1], strict=True):
        for number in (member.cost.flops, member.cost.params, member.cost.acts):
            assert f' {number:,} ' in line
        assert f' {member.arch.resolution} ' in line and f'{member.score} ± ' in line
    assert lines[-1].startswith('  ± is 1.96 standard errors of 100,000 images')


def test_it_reaches_the_optimums_neighbourhood(tmp_path):
    reached = [
        run(tmp_path / str(seed), seed, generations=8, rounds=3).fitness for seed in range(3)
    ]
    assert max(reached) <= optimum()
    assert sum(fitness >= optimum() * 98 / 100 for fitness in reached) >= 2


def test_no_arch_is_evaluated_twice_and_the_bound_holds(tmp_path):
    evaluator = AnalyticEvaluator()
    search = MCEA(make_family(), **SCHEDULE)
    result = search.run(make_scorer(tmp_path, evaluator))
    assert len(evaluator.digests) == len(set(evaluator.digests)) == result.evaluations
    assert result.evaluations <= search.most_evaluations
    assert search.most_evaluations == 4 * 80 + 2 * (8 * 5 * 2 + 80) + 3


def test_equal_seeds_give_equal_bytes_and_another_seed_does_not(tmp_path, result):
    assert as_bytes(run(tmp_path / 'a')) == as_bytes(result)
    other = run(tmp_path / 'b', seed=1)
    assert other.chain[1].history != result.chain[1].history
    assert as_bytes(other) != as_bytes(result)


def test_what_the_archive_knows_besides_changes_nothing(tmp_path, result):
    run(tmp_path, seed=5)
    assert as_bytes(run(tmp_path)) == as_bytes(result)


@pytest.mark.parametrize('size', [2, 3])
def test_ranks_find_the_same_as_one_process(tmp_path, result, size):
    def work(communicator):
        scorer = make_scorer(tmp_path, communicator=communicator)
        return as_bytes(MCEA(make_family(), **SCHEDULE).run(scorer))

    assert run_ranks(size, work) == [as_bytes(result)] * size


def test_elites_are_carried_over(tmp_path, monkeypatch):
    handed = []
    original = BaseEvolution.steps

    def spying(self, record, strategy, own):
        evolved = yield from original(self, record, strategy, own)
        handed.append((own.elites, evolved))
        return evolved

    monkeypatch.setattr(BaseEvolution, 'steps', spying)
    run(tmp_path)
    (first_elites, first), (second_elites, second) = handed
    assert not first_elites
    # All survive the new strategy, which the best of them is the first to have.
    bases = [candidate.genotype for candidate in first.population]
    assert [candidate.genotype for candidate in second_elites] == [bases[0], *bases]
    assert second_elites[0].fitness >= first.population[0].fitness
    worst = second.population[-1].fitness
    assert worst >= sorted(c.fitness for c in second_elites[1:])[0]
    assert second.population[0].fitness >= second_elites[0].fitness


def test_only_feasible_candidates_are_scored(tmp_path, monkeypatch):
    asked = []
    original = FamilyFitness.candidates

    def spying(self, record, proposals, least=None):
        for proposal in proposals:
            row = np.array([proposal.genes])
            asked.append(small_feasibility().feasible(row, proposal.strategy).all())
        return original(self, record, proposals, least)

    monkeypatch.setattr(FamilyFitness, 'candidates', spying)
    space, feasibility = small_space(), small_feasibility()
    genotypes = all_genotypes(space)
    genotypes = genotypes[feasibility.base_feasible(genotypes)]
    allowed = {space.decode(genes).digest for genes in genotypes}
    for j in (1, 2):
        for scaling in feasibility.distinct_scalings(j):
            feasible = genotypes[feasibility.scaled_feasible(genotypes, j, scaling)]
            allowed |= {space.decode(genes, scaling).digest for genes in feasible}
    evaluator = AnalyticEvaluator()
    MCEA(make_family(), **SCHEDULE).run(make_scorer(tmp_path, evaluator))
    assert asked and all(asked)
    assert set(evaluator.digests) <= allowed


def test_settings_are_checked(tmp_path, refuses):
    refuses(
        partial(MCEA, make_family()),
        rounds=[0],
        population=[0],
        num_base_models=[-1],
        seed=[-1],
        halving=[1],
    )


def test_steps_and_progress_are_reported(tmp_path):
    reports, steps = [], []
    scorer = make_scorer(tmp_path, progress=reports.append)
    result = MCEA(make_family(), **SCHEDULE).run(scorer, steps.append)
    assert tuple(step for step in steps if isinstance(step, ChainStep)) == result.chain
    for before, after in itertools.pairwise(steps):
        assert after.evaluations >= before.evaluations
    generations = [step for step in steps if isinstance(step, Generation)]
    assert [(g.round, g.number) for g in generations] == [
        (round_, number) for round_ in (1, 2) for number in range(1, 6)
    ]
    assert generations[7].step == 'round 2 of 2, base evolution'
    for generation, best in zip(
        generations, result.chain[1].history + result.chain[3].history, strict=True
    ):
        fitness = [fitness for _, fitness in generation.population]
        assert fitness == sorted(fitness, reverse=True) and fitness[0] == best
        assert json.loads(json.dumps(generation.to_json()))['kind'] == 'generation'
    assert reports[0].step == 'initial strategy' and reports[0].best is None
    names = {report.step for report in reports}
    assert 'round 2 of 2, base evolution, generation 5 of 5' in names
    assert 'round 1 of 2, scaling search' in names
    assert reports[-1].evaluations == result.evaluations
    assert reports[-1].best == result.fitness
    best = [report.best for report in reports if report.best is not None]
    assert best == sorted(best)


class FailingEvaluator(AnalyticEvaluator):
    """Cannot score networks of a scaling stage's resolution, as often as it is told."""

    def __init__(self, failures):
        super().__init__()
        self.failures = failures

    def evaluate(self, arch):
        if self.failures and arch.resolution > small_space().resolution:
            self.failures -= 1
            raise EvaluationError('too large: no memory')
        return super().evaluate(arch)


def test_networks_that_cannot_be_scored_do_not_end_a_search_by_families(tmp_path):
    scorer = make_scorer(tmp_path, FailingEvaluator(3))
    result = MCEA(make_family(), evaluations=40).run(scorer)
    assert result.failed == 3
    assert 30 < result.evaluations <= 40 + 1
    again = MCEA(make_family(), evaluations=40).run(make_scorer(tmp_path, FailingEvaluator(0)))
    assert as_bytes(again) == as_bytes(result)


@pytest.mark.parametrize('surrogate', [True, False])
@pytest.mark.parametrize(('evaluations', 'bases'), [(6, 1), (12, 2), (30, 2), (60, 20), (90, 1)])
def test_evaluations_and_a_comparison_of_base_models_go_together(
    tmp_path, evaluations, bases, surrogate
):
    search = MCEA(
        make_family(), evaluations=evaluations, num_base_models=bases, surrogate=surrogate
    )
    result = search.run(make_scorer(tmp_path))
    assert result.evaluations <= search.most_evaluations == evaluations + 1
    assert result.chain[0].evaluations <= evaluations // 2


def test_a_search_uses_its_evaluations_up(tmp_path):
    for seed in range(4):
        result = MCEA(make_family(), evaluations=100, seed=seed).run(
            make_scorer(tmp_path / str(seed))
        )
        assert result.evaluations > 90
        assert all(step.kind != 'nothing new' for step in result.chain)


def test_halving_does_not_go_with_evaluations():
    for kind in (MCEA, EvolutionSearch, SeparateSearch):
        with pytest.raises(ValueError, match='halving=True beside evaluations=60'):
            kind(make_family(), evaluations=60, halving=True)
