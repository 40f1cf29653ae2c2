"""Answers to budgets that no search was run for, from the archive of a small search."""

import json
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.config import Config
from small_searches import SPACE, Evaluator, mcea, write_run

from mmscale.apis.any_budget import answer_budgets, read_limits, verify
from mmscale.apis.budget_answers import Ranking
from mmscale.arch import SearchSpace, get_arch
from mmscale.cost import CostTable, LatencyModel, LatencySetting, count
from mmscale.launch import runner
from mmscale.search import Archive
from mmscale.search.distinct import distinct_scalings
from mmscale.search.surrogate import Surrogate

TOOL = Path(__file__).parents[2] / 'tools' / 'search.py'
MODEL = LatencyModel(0.5, 2e-5, 3e-7, LatencySetting(), (), {}, 0)
CONFIG = "model = dict(type='SuperNetClassifier', backbone=dict(type='SuperNet', space={}))\n"


@pytest.fixture(scope='module')
def work_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp('searched') / 'run'
    write_run(folder, mcea)
    (folder / 'search.py').write_text(CONFIG.format(SPACE))
    return folder


@pytest.fixture(scope='module')
def answers(work_dir):
    budgets = [dict(flops=50e3), 'flops=60K,params=4K']
    return answer_budgets(work_dir, budgets, 'latency=0.62', latency_model=MODEL, number=3)


def test_answers_keep_to_budgets_and_caps_exactly(answers):
    for answer in answers.answers:
        for network in answer.networks:
            cost = count(network.arch)
            assert cost == network.cost
            for metric, budget in answer.budgets.items():
                assert abs(getattr(cost, metric) / budget - 1) <= 0.05
            assert MODEL.predict(cost) <= 0.62 and network.latency == MODEL.predict(cost)
            found = network.predicted
            space = SearchSpace(**SPACE)
            assert space.decode(found.base, found.scaling) == network.arch
    assert [len(answer.networks) for answer in answers.answers] == [3, 3]


def test_the_best_of_all_predicted_networks_is_found(work_dir, answers):
    archive = Archive.open_existing(work_dir / 'archive')
    entries = list(archive.entries())
    surrogate = Surrogate([e.arch for e in entries], [e.outcome for e in entries])
    space = SearchSpace(**SPACE)
    table = CostTable(space)
    grids = np.meshgrid(*[np.arange(n) for n in space.num_choices], indexing='ij')
    genes = np.unique(space.canonicalise(np.stack([g.ravel() for g in grids], axis=1)), axis=0)
    within = {}
    for scaling in (s for j in range(2) for s in distinct_scalings(space, j)):
        costs = table.costs(genes, scaling)
        mask = (np.abs(costs.flops / 50e3 - 1) <= 0.05) & (MODEL.predict(costs) <= 0.62)
        archs = [space.decode(row, scaling) for row in genes[mask]]
        within.update((arch.digest, arch) for arch in archs)
    best = np.sort(surrogate.predict(list(within.values()))[0])[::-1]
    assert len(within) > 20
    found = [network.predicted.mean for network in answers.answers[0].networks]
    assert found == pytest.approx(best[:3], abs=1e-12)


def test_what_was_archived_stands_beside(work_dir, answers):
    scores = {e.arch.digest: e for e in Archive.open_existing(work_dir / 'archive').entries()}
    for answer in answers.answers:
        for network in answer.archived:
            assert network.score == scores[network.arch.digest].outcome
    costs = [entry.cost.flops for entry in scores.values()]
    far = answer_budgets(work_dir, f'flops={1.5 * max(costs)}', number=1).answers[0]
    assert not far.is_met and far.ranking.tau is None
    assert far.archived[0].cost.flops == max(costs)
    met = answer_budgets(work_dir, f'flops={costs[0]}', number=1, tolerance=1e-6).answers[0]
    assert met.is_met and {n.cost.flops for n in met.archived} == {costs[0]}


def test_caps_alone_are_a_question(work_dir):
    answer = answer_budgets(work_dir, caps=dict(params=2500), number=2).answers[0]
    assert all(network.cost.params <= 2500 for network in answer.networks)
    assert answer.budgets == {} and answer.title == 'caps alone'


def test_equal_questions_have_equal_answers(work_dir, answers, tmp_path):
    budgets = [dict(flops=50e3), 'flops=60K,params=4K']
    again = answer_budgets(work_dir, budgets, 'latency=0.62', latency_model=MODEL, number=3)
    assert again.to_json() == answers.to_json()
    again.save(tmp_path)
    data = json.loads((tmp_path / 'answers.json').read_text())
    assert data == json.loads(json.dumps(answers.to_json()))
    assert data['ranking']['networks'] == answers.scores > 40
    assert 0.8 < data['ranking']['tau'] <= 1
    arch = get_arch(tmp_path / 'archs' / 'budget_1_2.json')
    assert arch == answers.answers[1].networks[2].arch
    assert '50,000 flops within 0.05, at most 0.62 ms' in str(again)


@pytest.mark.parametrize(
    ('budgets', 'settings', 'message'),
    [
        ('flops=1', {}, 'budget.flops=1 flops is out of reach: networks of this space have 6,168'),
        ('flops=30K', dict(caps='acts=9'), 'caps.acts=9 acts is out of reach: networks of this'),
        ('speed=3', {}, "metric='speed' is not one of flops, params, acts, latency"),
        ('latency=3', {}, 'budget.latency needs a latency_model'),
        ('flops=2x', {}, 'flops is a multiple: of which network'),
        ('flops=2,flops=3', {}, 'flops is given twice'),
        ('flops=many', {}, "'many' is not a number"),
        (3, {}, 'budget=3 must be a text as flops=0.5e6, or a dict'),
        ((), {}, 'budget is not set: name one'),
        ('flops=50K,params=1K', {}, r'meets budget.flops and budget.params at once: wanted 1,000'),
        ('flops=50K', dict(tolerance=2), 'tolerance=2 must be a number above 0'),
        ('flops=50K', dict(number=0), 'number=0 must be an integer'),
    ],
)
def test_what_cannot_be_answered_is_refused(work_dir, budgets, settings, message):
    with pytest.raises(ValueError, match=message):
        answer_budgets(work_dir, budgets, **settings)


def test_work_dirs_that_cannot_answer(work_dir, tmp_path):
    with pytest.raises(ValueError, match='is not a folder; it must be the work dir'):
        answer_budgets(tmp_path / 'none', 'flops=50K')
    empty = tmp_path / 'empty'
    empty.mkdir()
    with pytest.raises(ValueError, match=r'no config of a search with model\.backbone\.space'):
        answer_budgets(empty, 'flops=50K')
    (empty / 'search.py').write_text(CONFIG.format(SPACE))
    with pytest.raises(ValueError, match='there is no archive'):
        answer_budgets(empty, 'flops=50K')
    shutil.copytree(work_dir / 'archive', empty / 'archive')
    file = empty / 'archive' / 'rank0000.jsonl'
    file.write_text(''.join(file.read_text().splitlines(keepends=True)[:6]))
    with pytest.raises(ValueError, match='the archive has 5 scores, and a surrogate needs 8'):
        answer_budgets(empty, 'flops=50K')
    other = dict(SPACE, num_classes=SPACE['num_classes'] + 1)
    (empty / 'search.py').write_text(CONFIG.format(other))
    shutil.rmtree(empty / 'archive')
    shutil.copytree(work_dir / 'archive', empty / 'archive')
    with pytest.raises(ValueError, match='the archive has networks that are not of the space'):
        answer_budgets(empty, 'flops=50K')
    (empty / 'search.py').write_text("model = dict(type='SuperNetDetector', detector=dict())\n")
    with pytest.raises(ValueError, match='those of its neck and head too: give the config'):
        answer_budgets(empty, 'flops=50K')


def test_the_best_are_verified_with_the_evaluator_of_the_search(work_dir, tmp_path, monkeypatch):
    copied = tmp_path / 'run'
    shutil.copytree(work_dir, copied)
    evaluator = Evaluator()
    built = SimpleNamespace(
        load_or_resume=lambda: None, test_loop=SimpleNamespace(evaluator=evaluator)
    )
    monkeypatch.setattr(runner, 'build_runner', lambda config, phase: built)
    asked = answer_budgets(copied, ['flops=50K', 'flops=80K'], number=3)
    with pytest.raises(ValueError, match='load_from is not set'):
        verify(asked, Config(dict(load_from=None)), 2)
    config = Config(dict(load_from='super.pth', work_dir='elsewhere'))
    verified = verify(asked, config, 2)
    archive = Archive.open_existing(copied / 'archive')
    for answer in verified.answers:
        assert [n.score for n in answer.networks[:2]] == [
            evaluator.evaluate(n.arch) for n in answer.networks[:2]
        ]
        assert all(archive.score(n.arch) == n.score for n in answer.networks[:2])
    scored = [n for answer in verified.answers for n in answer.networks[:2]]
    errors = [abs(n.predicted.mean - float(n.score.value)) for n in scored]
    assert verified.verified == Ranking(4, None, pytest.approx(np.mean(errors)))
    assert config.work_dir == 'elsewhere'
    evaluator.fingerprint = {'evaluator': 'another'}
    with pytest.raises(ValueError, match='its scores belong to another setting'):
        verify(asked, config, 1)


def test_rankings():
    ranking = Ranking.of(np.arange(10.0), np.arange(10.0)[::-1])
    assert (ranking.networks, ranking.tau) == (10, pytest.approx(-1))
    assert Ranking.of(np.zeros(0), np.zeros(0)) == Ranking(0, None, None)
    assert Ranking.of(np.ones(9), np.arange(9.0)).tau is None
    assert read_limits('cap', dict(acts='2K')) == {'acts': 2000.0}


def test_the_tool_answers_from_an_archive(work_dir, tmp_path, monkeypatch, capsys):
    out = tmp_path / 'out'
    words = ['--budget', 'flops=50K', '--budget', 'params=4K', '--cap', 'acts=6K', '--json']
    words += ['--from-archive', str(work_dir), '--number', '2', '--out', str(out)]
    monkeypatch.setattr(sys, 'argv', ['search.py', *words])
    runpy.run_path(str(TOOL), run_name='__main__')
    assert json.loads(capsys.readouterr().out) == json.loads((out / 'answers.json').read_text())
    answers = json.loads((out / 'answers.json').read_text())['answers']
    assert [answer['budgets'] for answer in answers] == [{'flops': 50e3}, {'params': 4e3}]
    assert all(n['cost']['acts'] <= 6e3 for answer in answers for n in answer['networks'])


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--budget', 'flops=1'], 'the following arguments are required: config'),
        (['config.py', '--budget', 'flops=1'], '--budget needs --from-archive'),
        (['config.py', '--number', '3'], '--number needs --from-archive'),
        (['config.py', '--verify', '0'], '--verify needs --from-archive'),
        (['--from-archive', 'x', '--work-dir', 'y'], '--work-dir and --cfg-options change a'),
        (['--from-archive', 'x', '--verify', '1'], '--verify runs the config of the search'),
        (['--from-archive', 'x', '--resume'], 'does not search: leave out --resume'),
        (['--from-archive', 'no/such', '--budget', 'flops=1'], 'no/such is not a folder'),
    ],
)
def test_the_tool_refuses_what_makes_no_sense(tool, words, message):
    code, error = tool('search.py', *words)
    assert code == 2 and message in error
