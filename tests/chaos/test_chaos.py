"""Training and search on two processes, killed at random moments: the end is the undisturbed one.

Short by default; the long form is ``pytest tests/chaos --chaos-kills 25 -s``.
"""

import collections
import random
import signal
import time
from pathlib import Path

import pytest
from mmengine.runner import CheckpointLoader
from torch import equal, is_tensor
from victims import ROOT, SEARCH_MOMENTS, TRAIN_MOMENTS, Ranks, write_config

TRAIN, SEARCH = (str(ROOT / 'tools' / name) for name in ('train.py', 'search.py'))
# How often a moment comes in one run at most, about.
COUNTS = dict(
    evaluation=12, append=12, appended=12, gather=6, result=6,
    backward=12, all_reduce=12, checkpoint=4, checkpoint_written=4, record=4,
)  # fmt: skip


def finish(arguments, log):
    assert Ranks(arguments, log).wait() == [0, 0], Path(log).read_text()[-3000:]


class Killer:
    """Kills runs at random moments until enough died, and counts what it hit."""

    def __init__(self, request, moments):
        self.kills = request.config.getoption('--chaos-kills', default=3)
        self.seed = request.config.getoption('--chaos-seed', default=0)
        self.chance = random.Random(f'{self.seed} {moments[0]}')
        self.moments = moments
        self.hit = collections.Counter()
        self.ends = 0

    def run_until_killed(self, arguments, log):
        """Starts runs, each resuming the last, until they were killed often enough."""
        while self.hit.total() < self.kills:
            moment = self.chance.choice([*self.moments, 'outside'])
            ranks = self.chance.choice([[0], [1], [0, 1]])
            if moment == 'outside':
                self._kill_outside(arguments, log, ranks)
            else:
                number = self.chance.randint(1, COUNTS[moment])
                run = Ranks(arguments, log, moments={rank: (moment, number) for rank in ranks})
                self._count(run.wait(), moment, log)

    def _kill_outside(self, arguments, log, ranks):
        run = Ranks(arguments, log)
        time.sleep(self.chance.uniform(0, 3))
        run.kill(ranks)
        self._count(run.wait(), 'outside', log)

    def _count(self, codes, moment, log):
        if -signal.SIGKILL in codes:
            # Who lives on has lost a neighbour and says so with its exit code.
            assert 0 not in codes or moment in ('result', 'record', 'outside'), (codes, moment)
            self.hit[moment] += 1
        else:
            # The moment does not come that often any more, or never to these ranks.
            assert codes == [0, 0], Path(log).read_text()[-3000:]
            self.ends += 1

    def __str__(self):
        hit = ', '.join(f'{moment} {count}' for moment, count in sorted(self.hit.items()))
        return f'seed {self.seed}: {self.hit.total()} kills ({hit}), {self.ends} ran to the end'


def leaves(value, prefix=''):
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in items:
            yield from leaves(part, f'{prefix}/{key}')
    else:
        yield prefix, value


def assert_same_training(one, other):
    """Weights, optimizer and schedulers of two checkpoints are equal bit by bit."""
    states = [CheckpointLoader.load_checkpoint(str(path), 'cpu') for path in (one, other)]
    for key in ('state_dict', 'optimizer', 'param_schedulers'):
        left, right = (dict(leaves(state[key])) for state in states)
        assert left.keys() == right.keys()
        for name, value in left.items():
            same = equal(value, right[name]) if is_tensor(value) else value == right[name]
            assert same, name


@pytest.fixture(scope='session')
def trained(train_config, tmp_path_factory):
    """The undisturbed training."""
    folder = tmp_path_factory.mktemp('trained')
    config = write_config(train_config, folder / 'train.py')
    finish([TRAIN, config, '--work-dir', folder / 'work'], folder / 'log')
    return folder / 'work' / 'iter_12.pth'


def test_training_survives(request, train_config, trained, tmp_path):
    config = write_config(train_config, tmp_path / 'train.py')
    arguments = [TRAIN, config, '--work-dir', tmp_path / 'work', '--resume']
    killer = Killer(request, TRAIN_MOMENTS)
    while killer.hit.total() < killer.kills:
        killer.run_until_killed(arguments, tmp_path / 'log')
    finish(arguments, tmp_path / 'log')
    print(f'\ntraining, {killer}')
    assert_same_training(tmp_path / 'work' / 'iter_12.pth', trained)


def test_search_survives(request, search_config, trained, tmp_path):
    search_config.load_from = str(trained)
    config = write_config(search_config, tmp_path / 'search.py')
    finish([SEARCH, config, '--work-dir', tmp_path / 'undisturbed'], tmp_path / 'log')
    arguments = [SEARCH, config, '--work-dir', tmp_path / 'work', '--resume']
    killer = Killer(request, SEARCH_MOMENTS)
    killer.run_until_killed(arguments, tmp_path / 'log')
    finish(arguments, tmp_path / 'log')
    print(f'\nsearch, {killer}')
    for path in (tmp_path / 'undisturbed').glob('archs/*.json'):
        assert (tmp_path / 'work' / 'archs' / path.name).read_bytes() == path.read_bytes()
    results = [tmp_path / name / 'result.json' for name in ('undisturbed', 'work')]
    assert results[0].read_bytes() == results[1].read_bytes()
