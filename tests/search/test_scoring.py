"""Scoring: no Arch twice, one process or several."""

import pytest
from analytic_problem import (
    AnalyticEvaluator,
    all_genotypes,
    analytic_score,
    run_ranks,
    small_space,
)

from mmscale.cost import count
from mmscale.search import Archive, Entry, EvaluationError, Score, Scorer
from mmscale.search.scoring import split_by_cost


def archs(number):
    return [small_space().decode(genes) for genes in all_genotypes(small_space())[:number]]


def test_longest_first_onto_the_least_loaded():
    assert split_by_cost([3, 9, 3, 5, 1], 2) == [[1, 4], [3, 0, 2]]
    assert split_by_cost([1, 1, 1], 2) == [[0, 2], [1]]
    assert split_by_cost([4], 3) == [[0], [], []]
    assert split_by_cost([], 2) == [[], []]


def test_nothing_is_evaluated_twice(tmp_path):
    evaluator = AnalyticEvaluator()
    batch = archs(4)
    with Archive(tmp_path, evaluator.fingerprint) as archive:
        scorer = Scorer(archive, evaluator)
        scores = scorer.score([batch[0], batch[1], batch[0]])
        assert scores == [analytic_score(arch) for arch in (batch[0], batch[1], batch[0])]
        scorer.score(batch)
        assert sorted(evaluator.digests) == sorted(arch.digest for arch in batch)
        assert scorer.evaluations == scorer.fresh == 4
    resumed = Scorer(Archive(tmp_path, evaluator.fingerprint), evaluator)
    assert resumed.score(batch[:3]) == [analytic_score(arch) for arch in batch[:3]]
    assert len(evaluator.digests) == 4
    # The count of a replay is that of the run it repeats, whatever else the archive knows.
    assert (resumed.evaluations, resumed.fresh) == (3, 0)


def test_every_score_is_on_disk_before_the_next_evaluation(tmp_path):
    seen = []

    class LookingEvaluator(AnalyticEvaluator):
        def evaluate(self, arch):
            seen.append(len(Archive(tmp_path, self.fingerprint)))
            return super().evaluate(arch)

    evaluator = LookingEvaluator()
    with Archive(tmp_path, evaluator.fingerprint) as archive:
        Scorer(archive, evaluator).score(archs(4))
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize('size', [2, 3])
def test_ranks_share_the_work_and_know_the_same(tmp_path, size):
    batch = archs(7)

    def work(communicator):
        evaluator = AnalyticEvaluator()
        with Archive(tmp_path, evaluator.fingerprint, communicator.rank) as archive:
            scorer = Scorer(archive, evaluator, communicator)
            assert scorer.score(batch[:1]) == [analytic_score(batch[0])]
            scores = scorer.score(batch)
            return scores, scorer.evaluations, archive.digests(), evaluator.digests

    results = run_ranks(size, work)
    assert all(result[:3] == results[0][:3] for result in results)
    assert results[0][0] == [analytic_score(arch) for arch in batch]
    evaluated = [digest for result in results for digest in result[3]]
    assert sorted(evaluated) == sorted(arch.digest for arch in batch)
    assert all(result[3] for result in results)
    assert len(Archive(tmp_path, AnalyticEvaluator.fingerprint)) == 7


def test_ranks_that_read_the_archive_at_different_times_agree(tmp_path):
    batch = archs(5)
    entries = [Entry(arch, count(arch), analytic_score(arch)) for arch in batch]
    fingerprint = AnalyticEvaluator.fingerprint
    archives = [Archive(tmp_path, fingerprint, rank) for rank in range(2)]
    with Archive(tmp_path, fingerprint, 5) as other:
        for entry in entries[:3]:
            other.append(entry)
    archives[1] = Archive(tmp_path, fingerprint, 1)  # Read three entries more than rank 0.

    def work(communicator):
        evaluator = AnalyticEvaluator()
        scorer = Scorer(archives[communicator.rank], evaluator, communicator)
        scorer.score(batch)
        return evaluator.digests

    evaluated = [digest for digests in run_ranks(2, work) for digest in digests]
    assert sorted(evaluated) == sorted(arch.digest for arch in batch[3:])


def test_ranks_of_different_settings_do_not_search_together(tmp_path):
    errors = []

    def work(communicator):
        archive = Archive(
            tmp_path / f'{communicator.rank}',  # Neither has read what the other has written.
            {**AnalyticEvaluator.fingerprint, 'torch': f'2.{communicator.rank}'},
            communicator.rank,
        )
        try:
            Scorer(archive, AnalyticEvaluator(), communicator)
        except ValueError as error:
            errors.append(str(error))

    run_ranks(2, work)
    assert sorted(errors) == [
        'the scores of rank 0 belong to another setting than those of rank 1 '
        "(torch: '2.0' of rank 0, '2.1' now)",
        'the scores of rank 1 belong to another setting than those of rank 0 '
        "(torch: '2.1' of rank 1, '2.0' now)",
    ]


class PassEvaluator(AnalyticEvaluator):
    """Scores up to three Archs at once; some of them fail."""

    candidates_per_pass = 3

    def __init__(self):
        super().__init__()
        self.passes, self.prepared = [], []

    def prepare_together(self, resolution, communicator):
        communicator.gather([])
        assert not self.passes
        self.prepared.append(resolution)

    def evaluate(self, arch, needed=None):
        self.passes.append([arch])
        return self.outcome(arch)

    def evaluate_together(self, archs, needed):
        assert len(archs) > 1 and len(archs) == len(needed)
        self.passes.append(list(archs))
        return [self.outcome(arch) for arch in archs]

    def outcome(self, arch):
        fails = len(arch.blocks) % 3 == 0
        return EvaluationError('out of memory: so it is') if fails else analytic_score(arch)


@pytest.mark.parametrize('size', [1, 2])
def test_candidates_of_one_resolution_share_a_pass(tmp_path, size):
    space = small_space()
    genotypes = all_genotypes(space)
    genes = genotypes[:: len(genotypes) // 9]
    scalings = sorted(space.scalings(1), key=lambda scaling: scaling.resolution)
    batch = [space.decode(g, s) for g in genes for s in (scalings[0], scalings[-1])]
    assert len({arch.resolution for arch in batch}) == 2

    def work(communicator):
        evaluator = PassEvaluator()
        with Archive(tmp_path, evaluator.fingerprint, communicator.rank) as archive:
            scorer = Scorer(archive, evaluator, communicator)
            return scorer.score(batch), evaluator, scorer.failed

    results = run_ranks(size, work)
    alone = [PassEvaluator().outcome(arch) for arch in batch]
    failing = {a.digest for a, o in zip(batch, alone, strict=True) if not isinstance(o, Score)}
    assert 0 < len(failing) < len(batch)
    for scores, evaluator, failed in results:
        assert scores == [outcome if isinstance(outcome, Score) else None for outcome in alone]
        assert failed == failing
        assert sorted(evaluator.prepared) == sorted({arch.resolution for arch in batch})
        for archs_of_pass in evaluator.passes:
            assert len({arch.resolution for arch in archs_of_pass}) == 1
    passes = [archs_of_pass for _, evaluator, _ in results for archs_of_pass in evaluator.passes]
    assert max(map(len, passes)) == 3
    digests = [arch.digest for archs_of_pass in passes for arch in archs_of_pass]
    assert sorted(digests) == sorted({arch.digest for arch in batch})


def test_the_archive_must_belong_to_evaluator_and_rank(tmp_path):
    with pytest.raises(ValueError, match='evaluator=None'):
        Scorer(Archive(tmp_path, {'checkpoint': 'a'}), AnalyticEvaluator())
    with pytest.raises(ValueError, match='rank 1'):
        Scorer(Archive(tmp_path, AnalyticEvaluator.fingerprint, rank=1), AnalyticEvaluator())


def test_progress_is_reported_after_every_evaluation(tmp_path):
    reports = []
    evaluator = AnalyticEvaluator()
    with Archive(tmp_path, evaluator.fingerprint) as archive:
        scorer = Scorer(archive, evaluator, progress=reports.append)
        scorer.step, scorer.most_evaluations = 'warm-up', 9
        scorer.score(archs(3))
    assert [r.evaluations for r in reports] == [1, 2, 3, 3]
    assert {(r.step, r.most_evaluations) for r in reports} == {('warm-up', 9)}
