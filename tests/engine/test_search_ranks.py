"""The search's ranks over gloo: any number of them, which may change, ends with the same bytes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_setups import ROOT

SCRIPT = Path(__file__).with_name('gloo_ranks.py')
UNDISTURBED = {'alone': 1, 'two': 2, 'four': 4}
# Ranks, the one that is killed, and when.
KILLS = ['4:2:evaluation:3', '2:0:append:9', '1:0:append:5', '2:1:evaluation:2']
VICTIMS = [2, 0, 0, 1]


@pytest.fixture(scope='module')
def searched(tmp_path_factory):
    """Folder of all searches, and how the processes of each ended; one import of torch for all."""
    folder = tmp_path_factory.mktemp('ranks')
    searches = [f'{name}={size}' for name, size in UNDISTURBED.items()]
    searches += [f'killed={search}' for search in [*KILLS, '4']]
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    command = [sys.executable, str(SCRIPT), str(folder), *searches]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, [json.loads(line) for line in done.stdout.splitlines()]


def outcome(work_dir):
    """The result, the lines of all ranks' archives, and what was evaluated."""
    paths = sorted((work_dir / 'archive').iterdir())
    lines = [line for path in paths for line in path.read_text().splitlines()[1:]]
    evaluated = [p.read_text().split() for p in sorted(work_dir.glob('evaluated*.txt'))]
    return (work_dir / 'result.json').read_bytes(), sorted(lines), evaluated


@pytest.mark.parametrize('name', ['two', 'four'])
def test_any_number_of_ranks_ends_with_the_same_bytes(searched, name):
    folder, codes = searched
    assert codes[:3] == [[0] * size for size in UNDISTURBED.values()]
    result, lines, (alone,) = outcome(folder / 'alone')
    same, same_lines, evaluated = outcome(folder / name)
    assert (same, same_lines) == (result, lines)
    assert len(evaluated) == UNDISTURBED[name]
    assert sorted(digest for digests in evaluated for digest in digests) == sorted(alone)


def test_the_number_of_ranks_may_change_from_kill_to_kill(searched):
    folder, codes = searched
    for search, victim in zip(codes[3:-1], VICTIMS, strict=True):
        # The others notice and end, too.
        assert search[victim] == -9
        assert all(code == 1 for rank, code in enumerate(search) if rank != victim)
    assert codes[-1] == [0, 0, 0, 0]
    result, lines, _ = outcome(folder / 'alone')
    same, same_lines, evaluated = outcome(folder / 'killed')
    assert (same, same_lines) == (result, lines)
    # What was finished before a kill is not evaluated again: of each the one that was going on.
    assert sum(map(len, evaluated)) <= len(lines) + len(KILLS)
