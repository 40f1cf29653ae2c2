"""A search of a config whose networks somebody else scores."""

import json

import pytest

import mmscale
from mmscale.errors import UsageError

CONFIG = 'configs/nas/search-evolution_mobilenet-v2_digits.py'
OPTIONS = ['test_cfg.search.evaluations=24', 'test_cfg.search.population=4']


def score(arch):
    return len(arch.blocks) / 100


def tell_all(search, most=None):
    told = 0
    while not search.finished and told != most:
        (arch,) = search.ask(1)
        search.tell(arch, score(arch))
        told += 1
    return told


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


def test_it_goes_on_where_it_was_and_leaves_what_a_search_leaves(tmp_path):
    straight, halted = tmp_path / 'straight', tmp_path / 'halted'
    with mmscale.searcher(CONFIG, straight, 'depth', options=OPTIONS) as search:
        assert tell_all(search) == 24
    with mmscale.searcher(CONFIG, halted, 'depth', options=OPTIONS) as search:
        tell_all(search, 13)
        with pytest.raises(UsageError, match='no result yet'):
            _ = search.result
    with pytest.raises(UsageError, match='holds the archive of an earlier search'):
        mmscale.searcher(CONFIG, halted, 'depth', options=OPTIONS)
    with pytest.raises(UsageError, match='belong to another setting'):
        mmscale.searcher(CONFIG, halted, 'width', resume=True, options=OPTIONS)
    with mmscale.searcher(CONFIG, halted, 'depth', resume=True, options=OPTIONS) as search:
        assert tell_all(search) == 11
        result = search.result
    first, second = (json.loads((d / 'result.json').read_text()) for d in (straight, halted))
    assert first == second
    (arch,) = result.archs.values()
    assert result.fitness == score(arch)
    assert mmscale.get_arch(halted / 'archs' / 'scaling_stage_0.json') == arch
    assert '24 evaluations' in str(result)
    assert mmscale.load_result(halted).fitness == result.fitness


def test_who_scores_must_have_a_name(tmp_path):
    with pytest.raises(UsageError, match="scored_by='' must say"):
        mmscale.searcher(CONFIG, tmp_path / 'a', '', options=OPTIONS)
    assert not (tmp_path / 'a').exists()
