"""Killed for real, at chosen moments, and started again: the result is the undisturbed one."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from analytic_problem import AnalyticEvaluator, search

from mmscale.search import Archive

ROOT = Path(__file__).parents[2]


def start(work_dir, *arguments):
    command = [sys.executable, str(Path(__file__).parent / 'analytic_problem.py'), work_dir]
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    return subprocess.Popen([*command, *arguments], cwd=ROOT, env=environment)


def known(work_dir):
    return set(Archive(work_dir / 'archive', AnalyticEvaluator.fingerprint).digests())


class Log:
    """What each run evaluated, from the files that the evaluators write."""

    def __init__(self, work_dir):
        self.work_dir = work_dir
        self.lengths = {}

    def new(self):
        digests = []
        for path in sorted(self.work_dir.glob('evaluated*.txt')):
            lines = path.read_text().split()
            digests += lines[self.lengths.get(path, 0) :]
            self.lengths[path] = len(lines)
        return digests


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('undisturbed')
    search(work_dir)
    return (work_dir / 'result.json').read_bytes(), known(work_dir)


def check_run(work_dir, log, before):
    """Nothing in the archive was evaluated again; returns how many evaluations were new."""
    evaluated = log.new()
    assert not before & set(evaluated)
    assert len(evaluated) == len(set(evaluated))
    return len(evaluated)


def test_kills_inside_evaluation_and_append(tmp_path, undisturbed):
    result, digests = undisturbed
    moments = ['append:1', 'evaluation:1', 'append:2', 'evaluation:20', 'append:31', 'appended:9']
    log, evaluations = Log(tmp_path), 0
    for moment in moments:
        before = known(tmp_path)
        assert start(tmp_path, '--kill', moment).wait(60) == -signal.SIGKILL
        assert not (tmp_path / 'result.json').exists()
        content = (
            (tmp_path / 'archive' / 'rank0000.jsonl').read_bytes() if known(tmp_path) else b''
        )
        if moment in ('append:2', 'append:31'):
            assert not content.endswith(b'\n')
        evaluations += check_run(tmp_path, log, before)
    before = known(tmp_path)
    assert 0 < len(before) < len(digests)
    assert start(tmp_path).wait(60) == 0
    evaluations += check_run(tmp_path, log, before)
    assert (tmp_path / 'result.json').read_bytes() == result
    assert known(tmp_path) == digests
    # Five evaluations were not on disk when a kill came: two were going on, two entries and the
    # header before an entry were half written. An entry written but not synced survives a kill.
    assert evaluations == len(digests) + 5


def test_kills_from_outside_at_random_moments(tmp_path, undisturbed):
    result, digests = undisturbed
    chance = random.Random(7)
    log, kills, target = Log(tmp_path), 0, 0
    while kills < 4:
        before = known(tmp_path)
        target = len(before) + chance.randrange(10, 40)
        process = start(tmp_path)
        archive = tmp_path / 'archive' / 'rank0000.jsonl'
        while not archive.exists() or archive.read_bytes().count(b'\n') < target:
            assert process.poll() is None
            time.sleep(0.002)
        process.kill()
        assert process.wait(60) == -signal.SIGKILL
        kills += 1
        check_run(tmp_path, log, before)
    before = known(tmp_path)
    assert start(tmp_path).wait(60) == 0
    check_run(tmp_path, log, before)
    assert (tmp_path / 'result.json').read_bytes() == result
    assert known(tmp_path) == digests


@pytest.mark.parametrize('ranks', ['2', '4'])
@pytest.mark.parametrize('options', [[], ['--surrogate']])
def test_processes_are_killed_and_resumed_as_one_and_as_many(
    tmp_path, undisturbed, options, ranks
):
    result, digests = undisturbed
    if options:
        (tmp_path / 'undisturbed').mkdir()
        search(tmp_path / 'undisturbed', surrogate=True)
        result = (tmp_path / 'undisturbed' / 'result.json').read_bytes()
        digests = known(tmp_path / 'undisturbed')
    work_dir = tmp_path / 'killed'
    work_dir.mkdir()
    log = Log(work_dir)
    runs = [
        ['--ranks', ranks, '--kill', 'append:7'],
        ['--kill', 'append:8'],
        ['--ranks', ranks, '--kill', 'evaluation:4'],
        ['--ranks', ranks],
    ]
    for arguments in runs:
        before = known(work_dir)
        code = start(work_dir, *options, *arguments).wait(60)
        assert (code == 0) == ('--kill' not in arguments)
        check_run(work_dir, log, before)
        assert len(known(work_dir)) > len(before)
    assert len(list((work_dir / 'archive').iterdir())) == int(ranks)
    assert (work_dir / 'result.json').read_bytes() == result
    assert known(work_dir) == digests
