"""The forecast of a search: its size without an evaluation, and no trace of it."""

import tempfile

import pytest
from analytic_problem import AnalyticEvaluator, make_family, small_feasibility, small_space

from mmscale.cost import CostTable, count
from mmscale.search import MCEA, FamilyFitness, ParetoSearch, RandomSearch
from mmscale.search.forecast import forecast


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    folder = tmp_path / 'temporary'
    folder.mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(folder))
    yield
    assert list(folder.iterdir()) == []


def of_family(make, events=None):
    family = FamilyFitness(small_feasibility(), [1, 1, 1])
    search = make(family, None if events is None else events.append)

    def run(scorer):
        family.scorer = scorer
        return search.run()

    return forecast(search, family, 0, run), search


def mcea(family, on_step=None):
    return MCEA(family, 8, 5, rounds=2, num_base_models=4, on_step=on_step)


def test_it_is_about_what_the_search_evaluates(tmp_path):
    events = []
    found, search = of_family(mcea, events)
    assert events == []
    assert search.on_step == events.append
    candidates = found.candidates
    assert len({c.arch for c in candidates}) == len(candidates)
    assert all(c.cost == count(c.arch) for c in candidates)
    assert all(found.batches)
    result = mcea(make_family(tmp_path, AnalyticEvaluator(), weights=[1, 1, 1])).run()
    assert 0.7 < len(candidates) / result.evaluations < 1.4
    assert len(candidates) < search.most_evaluations
    again, _ = of_family(mcea)
    assert again == found


def test_it_is_exact_where_nothing_is_left_to_chance():
    found, _ = of_family(lambda family, _: RandomSearch(family, 60))
    assert len(found.candidates) == 60
    search = ParetoSearch(CostTable(small_space()), population=8, generations=5)

    def run(scorer):
        search.scorer = scorer
        search.run()

    assert [len(batch) for batch in forecast(search, None, 0, run).batches] == [8] * 5
