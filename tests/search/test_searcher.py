"""Ask and tell: the same search, scored by somebody else."""

import json

import pytest
from analytic_problem import AnalyticEvaluator, analytic_score, make_family, make_scorer

from mmscale.errors import UsageError
from mmscale.search import MCEA, Archive, EvolutionSearch, Failure, Record, Searcher

NAMED = {'evaluator': {'name': 'told'}}


def opened(directory, search=None):
    search = search or MCEA(make_family(), evaluations=60, seed=3)
    record = Record(Archive(directory, NAMED))
    return Searcher(search.steps(record), record)


def test_it_finds_what_the_loop_finds_however_it_is_told(tmp_path):
    """Three at a time, the last first, and by another process after half of them."""
    searcher, told = opened(tmp_path / 'told'), 0
    while not searcher.finished:
        if told in range(25, 28):
            searcher.record.archive.close()
            searcher = opened(tmp_path / 'told')
        archs = searcher.ask(3)
        assert 1 <= len(archs) <= 3
        for arch in archs[::-1]:
            searcher.tell(arch, analytic_score(arch))
            told += 1
    expected = MCEA(make_family(), evaluations=60, seed=3).run(make_scorer(tmp_path / 'run'))
    assert told == expected.evaluations
    assert json.dumps(searcher.result.to_json()) == json.dumps(expected.to_json())


def test_what_was_asked_for_is_not_asked_for_again(tmp_path):
    searcher = opened(tmp_path, EvolutionSearch(make_family(), None, 4, 2))
    first, second = searcher.ask(3), searcher.ask()
    assert len({*first, *second}) == 4
    assert searcher.ask() == []
    assert not searcher.finished
    for arch in first + second:
        searcher.tell(arch, 0.25)
    assert len(searcher.ask()) == 4


def test_mistakes_are_one_clear_error(tmp_path):
    searcher = opened(tmp_path, EvolutionSearch(make_family(), None, 2, 1))
    one, other = searcher.ask()
    with pytest.raises(UsageError, match='no result yet: it waits for 2 scores'):
        _ = searcher.result
    for score in (1.5, -0.1, float('nan'), True, 'good', None):
        with pytest.raises(
            UsageError, match=r'must be a Score, a Failure or a number from 0 to 1'
        ):
            searcher.tell(one, score)
    with pytest.raises(UsageError, match='n=0 must be'):
        searcher.ask(0)
    searcher.tell(one, Failure('the board is on fire'))
    with pytest.raises(UsageError, match='does not wait for its score'):
        searcher.tell(one, 0.5)
    searcher.tell(other, 0.5)
    assert searcher.finished
    assert searcher.result.failed == 1 and searcher.result.family[0].arch == other


def test_an_archive_of_another_program_is_refused(tmp_path):
    MCEA(make_family(), 2, 1, 1, 0).run(make_scorer(tmp_path, AnalyticEvaluator()))
    with pytest.raises(UsageError, match='belong to another setting'):
        opened(tmp_path)
