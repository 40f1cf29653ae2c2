"""Training and search on two processes, killed at random moments: the end is the undisturbed one.

Short by default; the long form is ``pytest tests/chaos --chaos-kills 25 -s``.
"""

import collections
import random
import signal
import time
from pathlib import Path

from forked_tools import Ranks, finish
from victims import (
    SEARCH,
    SEARCH_MOMENTS,
    TRAIN,
    TRAIN_MOMENTS,
    assert_same_training,
    killed,
    write_config,
)

# How often a moment comes in one run at most, about.
COUNTS = dict(
    evaluation=12, append=12, appended=12, gather=6, result=6,
    backward=12, all_reduce=12, checkpoint=4, checkpoint_written=4, record=4,
)  # fmt: skip


class Killer:
    """Kills runs at random moments and counts what it hit."""

    def __init__(self, request, moments):
        self.kills = request.config.getoption('--chaos-kills', default=2)
        self.seed = request.config.getoption('--chaos-seed', default=0)
        self.chance = random.Random(f'{self.seed} {moments[0]}')
        self.moments = moments
        self.hit = collections.Counter()
        self.ends = 0

    def run_to_the_end(self, arguments, log):
        """Starts runs, each of which goes on with what the last one left, until one ends."""
        codes = None
        while codes != [0, 0]:
            if self.hit.total() == self.kills:
                codes = Ranks(arguments, log).wait()
            else:
                codes = self._run_and_kill(arguments, log)
            # Whoever is not killed ends by itself: with an error, or because all is done.
            if -signal.SIGKILL not in codes:
                assert codes == [0, 0], Path(log).read_text()[-3000:]
        self.ends += 1

    def _run_and_kill(self, arguments, log):
        moment = self.chance.choice([*self.moments, 'outside'])
        victims = self.chance.choice([[0], [1], [0, 1]])
        if moment == 'outside':
            ranks = Ranks(arguments, log)
            time.sleep(self.chance.uniform(0, 3))
            ranks.kill(victims)
        else:
            number = self.chance.randint(1, COUNTS[moment])
            at = dict.fromkeys(victims, (moment, number))
            ranks = Ranks(arguments, log, before=killed(at))
        codes = ranks.wait()
        self.hit[moment] += -signal.SIGKILL in codes
        return codes

    def __str__(self):
        hit = ', '.join(f'{moment} {count}' for moment, count in sorted(self.hit.items()))
        return f'seed {self.seed}: {self.hit.total()} kills ({hit}), {self.ends} runs to the end'


def work_dirs(killer, folder):
    """New work dirs, until there were enough kills."""
    while killer.hit.total() < killer.kills:
        yield folder / f'wörk dir {killer.ends}'


def test_training_survives(request, train_config, trained, tmp_path):
    config = write_config(train_config, tmp_path / 'train.py')
    killer = Killer(request, TRAIN_MOMENTS)
    for work_dir in work_dirs(killer, tmp_path):
        killer.run_to_the_end(
            [TRAIN, config, '--work-dir', work_dir, '--resume'], tmp_path / 'log'
        )
        assert_same_training(work_dir / 'iter_12.pth', trained / 'work' / 'iter_12.pth')
        print(f'\ntraining, {killer}')


def test_search_survives(request, search_config, trained, tmp_path):
    search_config.load_from = str(trained / 'work' / 'iter_12.pth')
    config = write_config(search_config, tmp_path / 'search.py')
    undisturbed = tmp_path / 'undisturbed'
    finish([SEARCH, config, '--work-dir', undisturbed], tmp_path / 'log')
    files = [undisturbed / 'result.json', *undisturbed.glob('archs/*.json')]
    killer = Killer(request, SEARCH_MOMENTS)
    for work_dir in work_dirs(killer, tmp_path):
        killer.run_to_the_end(
            [SEARCH, config, '--work-dir', work_dir, '--resume'], tmp_path / 'log'
        )
        for path in files:
            assert (work_dir / path.relative_to(undisturbed)).read_bytes() == path.read_bytes()
        print(f'\nsearch, {killer}')
