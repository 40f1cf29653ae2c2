"""Candidates that cannot be scored: recorded, never chosen, not tried again unasked."""

import json

import numpy as np
import pytest
from analytic_problem import (
    AnalyticEvaluator,
    all_genotypes,
    analytic_score,
    make_family,
    run_ranks,
    small_feasibility,
    small_space,
)

from mmscale.arch import Scaling
from mmscale.cost import CostTable
from mmscale.search import (
    MCEA,
    Archive,
    EvaluationError,
    GivenFamily,
    ParetoSearch,
    RandomSearch,
    ScalingSearch,
    Scorer,
    SeparateSearch,
)


class FailingEvaluator(AnalyticEvaluator):
    """Fails for a given share of the Archs, which depends on nothing but them."""

    def __init__(self, share, of=256):
        super().__init__()
        self.share, self.of = share, of

    def fails(self, digest):
        return int(digest[:2], 16) < self.share * self.of

    def evaluate(self, arch, needed=None):
        score = super().evaluate(arch)
        if self.fails(arch.digest):
            raise EvaluationError(f'out of memory: {arch.resolution}\npx')
        return score


FAMILY = make_family([1, 1, 1])
MCEA_SETTINGS = dict(population=6, generations=3, rounds=2, num_base_models=3, seed=1)
SEARCHES = {
    'mcea': lambda: MCEA(FAMILY, **MCEA_SETTINGS),
    'halving': lambda: MCEA(FAMILY, **MCEA_SETTINGS, halving=True),
    'random': lambda: RandomSearch(FAMILY, 60, seed=1),
    'separate': lambda: SeparateSearch(FAMILY, 4, 2, rounds=1, num_base_models=2, seed=1),
    'pareto': lambda: ParetoSearch(CostTable(small_space()), population=8, generations=4, seed=1),
}


def run(directory, name, evaluator, communicator=None, retry=False):
    rank = communicator.rank if communicator else 0
    with Archive(directory, evaluator.fingerprint, rank, durable=False) as archive:
        if retry:
            archive.forget_failures()
        scorer = Scorer(archive, evaluator, communicator)
        return SEARCHES[name]().run(scorer).to_json()


@pytest.mark.parametrize('name', SEARCHES)
def test_a_search_goes_on_without_what_fails(tmp_path, name):
    evaluator = FailingEvaluator(0.15)
    result = run(tmp_path, name, evaluator)
    failures = Archive(tmp_path, evaluator.fingerprint).failures
    assert {failure.reason.split()[0] for failure in failures.values()} == {'out'}
    assert result['failed'] == len(failures) > 0
    assert all(map(evaluator.fails, failures))
    members = result.get('scaling_stages') or result['front']
    assert all(member['score'] is not None for member in members)
    # A replay tries none of them again and ends as the search did.
    replay = FailingEvaluator(0.15)
    assert run(tmp_path, name, replay) == result
    assert replay.digests == []
    # Asked to, it does.
    run(tmp_path, name, replay, retry=True)
    assert sorted(replay.digests) == sorted(failures)


@pytest.mark.parametrize('ranks', [2, 3])
def test_ranks_agree_on_what_failed(tmp_path, ranks):
    alone = run(tmp_path / 'alone', 'mcea', FailingEvaluator(0.15))

    def work(communicator):
        return run(tmp_path / 'together', 'mcea', FailingEvaluator(0.15), communicator)

    assert run_ranks(ranks, work) == [alone] * ranks


def test_a_failure_that_is_gone_is_a_score_when_tried_again(tmp_path):
    failed = run(tmp_path, 'mcea', FailingEvaluator(0.15))
    undisturbed = run(tmp_path / 'undisturbed', 'mcea', FailingEvaluator(0))
    retried = run(tmp_path, 'mcea', FailingEvaluator(0), retry=True)
    assert retried == undisturbed
    assert retried['failed'] == 0 < failed['failed']
    # What the search did not meet again is still on file, as it was.
    left = Archive(tmp_path, AnalyticEvaluator.fingerprint).failures
    assert len(left) < failed['failed']


@pytest.mark.parametrize('ranks', [1, 2])
def test_a_search_ends_if_most_fail(tmp_path, ranks):
    def work(communicator):
        with pytest.raises(ValueError, match='of them for') as error:
            run(tmp_path, 'mcea', FailingEvaluator(0.8), communicator if ranks > 1 else None)
        return str(error.value)

    messages = run_ranks(ranks, work)
    assert 'for: out of memory (as: out of memory: ' in messages[0]
    assert messages[0].endswith('continue with --resume --retry-failed')
    # What could be scored is kept.
    archive = Archive(tmp_path, AnalyticEvaluator.fingerprint)
    assert 8 < len(archive.failures) < len(archive)


@pytest.mark.parametrize('name', SEARCHES)
def test_a_search_without_a_single_score_says_why(tmp_path, name):
    with pytest.raises(ValueError, match=r'\d+ of \d+ networks could not be scored'):
        run(tmp_path, name, FailingEvaluator(1))


class ListedEvaluator(AnalyticEvaluator):
    """Fails for the Archs of a list."""

    def __init__(self, archs):
        super().__init__()
        self.archs = archs

    def evaluate(self, arch, needed=None):
        if arch in self.archs:
            raise EvaluationError('logits that are not finite')
        return analytic_score(arch)


def best_family(directory, search, evaluator):
    with Archive(directory, evaluator.fingerprint, durable=False) as archive:
        return search.run(Scorer(archive, evaluator))


def test_the_best_scaling_is_not_chosen_if_it_fails(tmp_path):
    space, feasibility = small_space(), small_feasibility()
    genotypes = all_genotypes(space)
    ok = feasibility.base_feasible(genotypes)
    for j in (1, 2):
        ok &= feasibility.admitted(genotypes, j).sum(axis=0) > 1
    base = space.genotype(genotypes[np.flatnonzero(ok)[0]])
    search = ScalingSearch(make_family([0, 1, 1]), base)
    first = best_family(tmp_path / 'first', search, AnalyticEvaluator())
    evaluator = ListedEvaluator([first.family[1].arch])
    second = best_family(tmp_path / 'second', search, evaluator)
    assert second.family[1].arch != first.family[1].arch
    assert second.family[2].arch == first.family[2].arch
    assert second.failed == 1
    # Scaling stage 0 does not count: the search ends well without its score.
    evaluator = ListedEvaluator([space.decode(base)])
    third = best_family(tmp_path / 'third', search, evaluator)
    assert third.family[0].score is None
    assert third.to_json()['scaling_stages'][0]['score'] is None
    assert 'none' in str(third)
    assert third.fitness == first.fitness
    every = [arch for _, arch in feasibility.scalings_of(np.array(base.genes), 1)]
    with pytest.raises(ValueError, match=r'scaling stage 1: .* for: logits that are not finite'):
        best_family(tmp_path / 'fourth', search, ListedEvaluator(every))


def test_a_given_family_that_fails_is_an_error(tmp_path):
    space = small_space()
    genotypes = all_genotypes(space)
    base = space.genotype(genotypes[small_feasibility().base_feasible(genotypes)][0])
    evaluator = ListedEvaluator([space.decode(base)])
    search = GivenFamily(make_family([0, 1, 1]), base, [Scaling()] * 3)
    with (
        pytest.warns(UserWarning, match='misses its budget'),
        pytest.raises(ValueError, match='1 of 1 networks could not be scored'),
    ):
        best_family(tmp_path, search, evaluator)


def test_reasons_are_one_line_in_the_archive(tmp_path):
    evaluator = FailingEvaluator(1)
    with Archive(tmp_path, evaluator.fingerprint) as archive:
        arch = small_space().smallest()
        assert Scorer(archive, evaluator).score([arch]) == [None]
    line = archive.path.read_text().splitlines()[1]
    assert json.loads(line)['entry']['failure'] == f'out of memory: {arch.resolution} px'
