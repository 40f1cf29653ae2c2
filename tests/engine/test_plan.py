"""tools/search.py --plan: measures, foretells, and leaves no trace."""

import json
from pathlib import Path

import pytest

from mmscale.apis.plan import Duration, _duration, make_plan
from mmscale.launch.command_line import read_config


def snapshot(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob('*') if path.is_file()}


def test_a_plan_measures_and_leaves_no_trace(
    search_config, trained, write_config, tmp_path, monkeypatch, call_tool
):
    temporary = tmp_path / 'temporary'
    temporary.mkdir()
    monkeypatch.setattr('tempfile.tempdir', str(temporary))
    path = write_config(dict(search_config, load_from=trained))
    before = snapshot(tmp_path)
    plan = make_plan(read_config(path), seconds=0)
    assert snapshot(tmp_path) == before
    assert list(temporary.iterdir()) == []
    assert not Path(search_config['work_dir']).exists()
    assert len(plan.timed) == 3
    flops = [candidate.cost.flops for candidate in plan.timed]
    assert flops[0] == max(flops)
    assert all(0 < t.own_seconds <= t.seconds for t in plan.timed)
    seconds = [duration.own_seconds for duration in plan.durations]
    assert seconds == sorted(seconds, reverse=True)
    assert plan.durations[0].idle == 0
    assert 0 < plan.disk_bytes[1] < plan.disk_bytes[0]
    assert plan.host_bytes > 10**8
    data = json.loads(json.dumps(plan.to_json()))
    assert data['profile']['most_evaluations'] >= data['expected_evaluations']
    assert data['weights'] == trained
    assert 'at most' in str(plan)
    assert 'random weights' not in str(plan)
    # What it expects is about what the search does.
    code, errors = call_tool('search.py', path)
    assert code == 0, errors
    result = json.loads((Path(search_config['work_dir']) / 'result.json').read_text())
    assert 0.5 < plan.expected_evaluations / result['evaluations'] < 2


def test_durations_add_up():
    batches = [[4.0, 2.0, 2.0], [3.0]]
    assert _duration(batches, 1, 1.0, 2.0) == Duration(1, 24.0, 12.0, 0.0)
    # 4 + 3 seconds of work in the longest shares, and a second to read the images each.
    duration = _duration(batches, 2, 1.0, 1.0)
    assert duration.own_seconds == 8.0
    assert duration.idle == pytest.approx(1 - (11 + 2) / 16)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--plan', '--resume'], '--profile and --plan touch nothing'),
        (['--plan', '--launcher', 'pytorch'], 'run in one process'),
        (['--plan', '--profile'], 'not allowed with'),
        (['--json'], '--json needs --profile or --plan'),
        (['--retry-failed'], '--retry-failed needs --resume'),
    ],
)
def test_options_that_do_not_go_together(
    search_config, write_config, call_tool, arguments, message
):
    code, errors = call_tool('search.py', write_config(search_config), *arguments)
    assert code == 2
    assert message in errors


def test_a_plan_needs_no_trained_weights_and_says_so(search_config, write_config, tmp_path):
    settings = dict(search_config, load_from=str(tmp_path / 'not yet.pth'))
    settings['test_cfg'] = dict(settings['test_cfg'], final_images=48)
    plan = make_plan(read_config(write_config(settings)), seconds=0)
    assert len(plan.timed) == 3
    assert plan.weights is plan.to_json()['weights'] is None
    assert 'times with random weights' in str(plan)
    assert plan.final == (5 * 2, 48)
    assert 'at most 10 networks on 48 images each' in str(plan)
    assert not Path(search_config['work_dir']).exists()


def test_a_search_needs_a_super_supernet(search_config, write_config, call_tool):
    code, errors = call_tool('search.py', write_config(search_config))
    assert code == 2
    assert 'load_from is not set' in errors
