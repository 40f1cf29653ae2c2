"""A search of a config whose networks somebody else scores."""

import json

import pytest

import mmscale
from mmscale.errors import UsageError
from mmscale.search import Failure

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


def test_what_makes_no_sense_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r'options=.*must be a list of texts'):
        mmscale.searcher(CONFIG, tmp_path / 'a', 'v1', options='test_cfg.seed=1')
    with pytest.raises(UsageError, match=r'test_cfg\.final_images=9: what is told'):
        mmscale.searcher(CONFIG, tmp_path / 'b', 'v1', options=['test_cfg.final_images=9'])
    assert not (tmp_path / 'a').exists() and not (tmp_path / 'b').exists()
    with mmscale.searcher(CONFIG, tmp_path / 'c', 'v1', options=OPTIONS) as search:
        for arch in (None, 'x', {}):
            with pytest.raises(UsageError, match='must be an Arch, one of those asked for'):
                search.tell(arch, 0.5)
    with pytest.raises(UsageError, match='reason=3 must be a text'):
        Failure(3)
