"""tools/search.py --profile and --dry-run: no checkpoint, no data, no model."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

from mmscale.apis.search import plan_search
from mmscale.arch import Arch

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs' / 'scalenet'
# Loops are registered with torch here; nothing else of a super-supernet may be made.
SHORT = ['--cfg-options']
SHORT += [f'test_cfg.search.{key}' for key in ('population=4', 'generations=2', 'rounds=1')]


@pytest.fixture
def tool(monkeypatch, capfd, tmp_path):
    """Runs tools/search.py in this process and an empty folder; exit code and what it wrote."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.setenv('COLUMNS', '120')

    def run(config, *words):
        path = config if isinstance(config, Path) else CONFIGS / config
        monkeypatch.setattr(sys, 'argv', ['search.py', str(path), *map(str, words)])
        capfd.readouterr()
        code = 0
        try:
            runpy.run_path(str(ROOT / 'tools' / 'search.py'), run_name='__main__')
        except SystemExit as exit_:
            code = exit_.code
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


def test_a_profile_touches_nothing(tool, tmp_path):
    code, out, err = tool('search-mcea_digits.py', '--profile', *SHORT)
    assert (code, err) == (0, '')
    assert list(tmp_path.iterdir()) == []
    assert '16,464 base models' in out
    assert 'the schedule evaluates at most' in out
    assert 'budget of the base model: 700,000 flops within 0.05' in out
    for name in ('smallest', 'middle', 'largest'):
        assert f'4 {name}' in out


def test_a_profile_as_json(tool, tmp_path):
    code, out, _ = tool('search-mcea_in1k.py', '--profile', '--json')
    data = json.loads(out)
    assert code == 0 and list(tmp_path.iterdir()) == []
    assert data['base_models'] == 223_948_800_000
    assert [stage['distinct_scalings'] for stage in data['stages']] == [1, 12, 45, 42]
    # Scaling stage 0 has no weight: its network is scored at the end.
    assert data['most_evaluations'] == 5000 + 1


def test_a_profile_of_a_search_without_a_family(tool):
    code, out, _ = tool('search-pareto_in1k.py', '--profile')
    assert code == 0 and 'the schedule evaluates at most 2,560 networks' in out


def test_a_space_with_one_scaling_stage_is_searched_for_networks(tool, tmp_path):
    config = ROOT / 'configs' / 'nas' / 'search-evolution_attentive_digits.py'
    code, profile, err = tool(config, '--profile')
    assert (code, err) == (0, '')
    assert '11,943,936 networks' in profile and 'networks within it: ' in profile
    small = ['--cfg-options', 'test_cfg.search.population=4', 'test_cfg.search.generations=2']
    code, log, err = tool(config, '--dry-run', '--work-dir', tmp_path / 'dry', *small)
    assert (code, err) == (0, '')
    for out in (profile, log):
        # All that the space chooses.
        for words in ('24 28 32 36 px', 'stem 8 12', '2 3 4 a stage', '0.25 of hidden, /8'):
            assert words in out
        out = out.replace('one scaling stage: an ordinary search space', '')
        assert not any(word in out for word in ('famil', 'scaling', 'base model'))
    assert 'network: expansions per network stage' in log
    small = ['--cfg-options', 'test_cfg.search._delete_=True', 'test_cfg.search.base=[0]']
    code, _, err = tool(config, '--profile', *small, 'test_cfg.search.type=mmscale.ScalingSearch')
    assert code == 2 and 'ScalingSearch has nothing to search' in err and err.count('\n') == 1


def test_a_dry_run_leaves_what_a_search_leaves(tool, tmp_path):
    code, out, err = tool('search-mcea_digits.py', '--dry-run', *SHORT)
    assert (code, err) == (0, '')
    work_dir = tmp_path / 'work_dirs' / 'search-mcea_digits_dry_run'
    result = json.loads((work_dir / 'result.json').read_text())
    random = json.loads((work_dir / 'random' / 'result.json').read_text())
    assert 0 < result['fitness'] <= 1
    assert result['evaluations'] - 5 < random['evaluations'] <= result['evaluations'] + 5
    for j, stage in enumerate(result['scaling_stages']):
        arch = Arch.from_json(work_dir / 'archs' / f'scaling_stage_{j}.json')
        assert arch == Arch.from_json(stage['arch'])
    history = (work_dir / 'history.jsonl').read_text().splitlines()
    assert json.loads(history[-1])['kind'] == 'scaling search'
    assert Config.fromfile(work_dir / 'search-mcea_digits.py').test_cfg.search.population == 4
    lines = (work_dir / 'archive' / 'rank0000.jsonl').read_text().splitlines()
    assert len(lines) == 1 + result['evaluations']
    log = (work_dir / 'dry_run.log').read_text()
    assert 'its optimum is 1' in log and 'random families' in log
    assert f'{result["fitness"]:.4f}' in out and f'{random["fitness"]:.4f}' in out

    # What is archived is not evaluated again, and the rest is as if nothing had happened.
    before = (work_dir / 'result.json').read_bytes()
    code, _, err = tool('search-mcea_digits.py', '--dry-run', *SHORT)
    assert code == 2 and 'holds the archive of an earlier search' in err and err.count('\n') == 1
    archive = work_dir / 'archive' / 'rank0000.jsonl'
    archive.write_text('\n'.join([*lines[:20], lines[20][:40]]))
    code, out, _ = tool('search-mcea_digits.py', '--dry-run', '--resume', *SHORT)
    assert code == 0 and 'replaying 19 evaluations' in out
    assert (work_dir / 'result.json').read_bytes() == before
    assert archive.read_text().splitlines() == lines


def test_a_dry_run_of_a_given_strategy_has_the_optimum_within_reach(tool, tmp_path):
    config = tmp_path / 'mine.py'
    strategy = [(1, 1, 24), (1, 1.1, 30), (1.3, 1.3, 30), (1.6, 1.4, 34), (2, 1.6, 44)]
    dicts = [dict(depth=d, width=w, resolution=r / 24) for d, w, r in strategy]
    config.write_text(
        f'_base_ = {str(CONFIGS / "search-evolution_digits.py")!r}\n'
        f'test_cfg = dict(search=dict(strategy={dicts}, population=32, generations=12))\n'
    )
    code, _, err = tool(config, '--dry-run', '--work-dir', tmp_path / 'dry')
    assert (code, err) == (0, '')
    result = json.loads((tmp_path / 'dry' / 'result.json').read_text())
    assert result['fitness'] > 0.8
    assert not (tmp_path / 'dry' / 'random' / 'result.json').exists()


@pytest.mark.parametrize(
    ('config', 'words', 'message'),
    [
        ('arch-net_digits.py', ['--profile'], 'has no search'),
        (
            'search-mcea_digits.py',
            ['--profile', '--cfg-options', 'model.backbone.space=None'],
            'has no dict model.backbone.space',
        ),
        (
            'search-mcea_digits.py',
            ['--profile', '--cfg-options', 'model.backbone=3'],
            'has no dict',
        ),
        ('search-mcea_digits.py', ['--profile', '--cfg-options', 'test_cfg=3'], 'has no search'),
        (
            'search-mcea_digits.py',
            ['--profile', '--cfg-options', 'test_cfg.type=3'],
            'has no search',
        ),
        ('search-pareto_digits.py', ['--dry-run'], 'ParetoSearch has no known optimum'),
        ('search-mcea_digits.py', ['--profile', '--dry-run'], 'not allowed with argument'),
        ('search-mcea_digits.py', ['--json'], '--json needs --profile'),
        ('search-mcea_digits.py', ['--profile', '--resume'], '--profile and --plan touch nothing'),
        ('search-mcea_digits.py', ['--dry-run', '--launcher', 'pytorch'], 'run in one process'),
        (
            'search-mcea_digits.py',
            ['--profile', '--cfg-options', 'test_cfg.budget=1'],
            'out of reach',
        ),
        ('search-mcea_digits.py', ['--profile', '--cfg-options', 'test_cfg.foo=1'], 'foo'),
        (
            'search-mcea_digits.py',
            ['--dry-run', '--cfg-options', 'test_cfg.search.population=0'],
            '1 or more',
        ),
        ('search-mcea_digits.py', ['--profile', '--cfg-options', 'test_cfg.seed=a'], "seed='a'"),
        (
            'search-mcea_digits.py',
            ['--dry-run', '--cfg-options', 'test_cfg.tolerance=1e-9'],
            'no base model meets the budget',
        ),
        ('search-mcea_digits.py', ['--dry-run', '--work-dir', '/dev/null/x'], '/dev/null'),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(tool, tmp_path, config, words, message):
    code, _, err = tool(config, *words)
    assert code == 2
    assert message in err.splitlines()[-1]
    assert 'Traceback' not in err
    assert list(tmp_path.iterdir()) == []


def test_a_search_whose_loop_is_named_as_a_class_is_planned():
    from mmscale.engine import SearchLoop

    config = Config.fromfile(CONFIGS / 'search-mcea_digits.py')
    config.test_cfg.type = SearchLoop
    assert plan_search(config).search is not None
