"""The forecast of a search: its size without an evaluation, and no trace of it."""

import tempfile

import pytest
from analytic_problem import make_family, make_scorer, small_space

from mmscale.cost import CostTable, count
from mmscale.search import MCEA, ParetoSearch, RandomSearch
from mmscale.search.forecast import forecast


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    folder = tmp_path / 'temporary'
    folder.mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(folder))
    yield
    assert list(folder.iterdir()) == []


def test_it_is_about_what_the_search_evaluates(tmp_path):
    search = MCEA(make_family([1, 1, 1]), 8, 5, rounds=2, num_base_models=4)
    found = forecast(search, 0)
    candidates = found.candidates
    assert len({c.arch for c in candidates}) == len(candidates)
    assert all(c.cost == count(c.arch) for c in candidates)
    assert all(found.batches)
    result = search.run(make_scorer(tmp_path))
    assert 0.7 < len(candidates) / result.evaluations < 1.4
    assert len(candidates) < search.most_evaluations
    assert forecast(search, 0) == found


def test_it_is_exact_where_nothing_is_left_to_chance():
    found = forecast(RandomSearch(make_family([1, 1, 1]), 60), 0)
    assert len(found.candidates) == 60
    search = ParetoSearch(CostTable(small_space()), population=8, generations=5)
    assert [len(batch) for batch in forecast(search, 0).batches] == [8] * 5
