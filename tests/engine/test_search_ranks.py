"""The search's ranks over gloo: any number of them, which may change, ends with the same bytes."""

import copy
import json
from pathlib import Path

import pytest
import torch
from gloo_ranks import run_ranks
from mmengine.runner import CheckpointLoader

from mmscale.arch import get_arch

UNDISTURBED = {'alone': 1, 'two': 2, 'four': 4}
# Ranks, the one that is killed, and when.
KILLS = [
    (4, 2, ('evaluation', 3)),
    (2, 0, ('append', 9)),
    (1, 0, ('append', 5)),
    (2, 1, ('evaluation', 2)),
]


@pytest.fixture(scope='module')
def searched(tmp_path_factory):
    """Folder of all searches, and how the processes of each ended."""
    folder = tmp_path_factory.mktemp('ranks')
    codes = [run_ranks(folder / name, size) for name, size in UNDISTURBED.items()]
    codes += [run_ranks(folder / 'killed', *kill) for kill in [*KILLS, (4,)]]
    return folder, codes


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
    for search, (_, victim, _) in zip(codes[3:-1], KILLS, strict=True):
        # The others notice and end, too.
        assert search[victim] == -9
        assert all(code == 1 for rank, code in enumerate(search) if rank != victim)
    assert codes[-1] == [0, 0, 0, 0]
    result, lines, _ = outcome(folder / 'alone')
    same, same_lines, evaluated = outcome(folder / 'killed')
    assert (same, same_lines) == (result, lines)
    # What was finished before a kill is not evaluated again: of each the one that was going on.
    assert sum(map(len, evaluated)) <= len(lines) + len(KILLS)


def test_two_processes_train_and_search_like_one(
    supernet_config, search_config, write_config, fork_tool, call_tool, tmp_path
):
    codes, said = fork_tool('train.py', write_config(supernet_config), processes=2)
    assert codes == [0, 0], said[-3000:]
    weights = Path(supernet_config['work_dir']) / 'iter_8.pth'
    state = CheckpointLoader.load_checkpoint(str(weights))['state_dict']
    assert all(torch.isfinite(tensor).all() for tensor in state.values())
    search_config['load_from'] = str(weights)
    path = write_config(search_config)
    # They make the images of every resolution together, and share them.
    shared = copy.deepcopy(search_config)
    shared['test_cfg']['subnet_evaluator'].update(cache='disk', candidates_per_pass=3)
    codes, said = fork_tool('search.py', write_config(shared, 'shared.py'), processes=2)
    assert codes == [0, 0], said[-3000:]
    work_dir = Path(search_config['work_dir'])
    assert {p.name for p in (work_dir / 'archive').iterdir()} == {
        'rank0000.jsonl',
        'rank0001.jsonl',
    }
    code, errors = call_tool('search.py', path, '--work-dir', tmp_path / 'one')
    assert code == 0, errors
    assert searched_in(work_dir) == searched_in(tmp_path / 'one')
    assert lines_of(work_dir, 'archive') == lines_of(tmp_path / 'one', 'archive')
    resolutions = {json.loads(s)['resolution'] for s in lines_of(work_dir, 'seconds')}
    names = {path.name for path in (work_dir / 'images').iterdir()}
    assert {name.split('_')[1] for name in names} == {f'{side}px' for side in resolutions}
    assert len(names) == 2 * len(resolutions)  # to calibrate and to score


def searched_in(work_dir):
    """What a search found, without the name of its config."""
    result = json.loads((work_dir / 'result.json').read_text())
    archs = {path.name: get_arch(path) for path in (work_dir / 'archs').iterdir()}
    return {**result, 'origin': None}, archs, (work_dir / 'history.jsonl').read_bytes()


def lines_of(work_dir, folder):
    """The lines of all ranks' files, but for headers."""
    paths = (Path(work_dir) / folder).glob('rank*.jsonl')
    lines = [line for path in paths for line in path.read_text().splitlines()]
    return sorted(line for line in lines if 'fingerprint' not in line)
