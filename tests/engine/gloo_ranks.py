"""Searches with an analytic score on processes that torch.distributed joins by gloo.

``python gloo_ranks.py FOLDER NAME=SIZE[:RANK:MOMENT:NUMBER] ...`` runs one search after another
in FOLDER/NAME, each resuming what is there, on so many processes; of them the rank is killed at
the moment, see ``analytic_problem.py``. Prints the exit codes of every search, a line each.
"""

import json
import os
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / 'search'))

import analytic_problem
from torch import distributed

from mmscale.quiet import quiet_imports

with quiet_imports():
    from mmscale.engine.distributed import Ranks


def work(work_dir, rank, size, store, kill):
    """One process."""
    distributed.init_process_group(
        'gloo', init_method=f'file://{store}', rank=rank, world_size=size
    )
    analytic_problem.search(work_dir, Ranks(), kill)
    distributed.destroy_process_group()


def run(work_dir, number, size, victim, kill):
    """Forks the processes of one search; returns how each ended."""
    children = []
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                store = work_dir / f'store{number}'
                work(work_dir, rank, size, store, kill if rank == victim else None)
                code = 0
            except RuntimeError:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]


def main():
    for number, words in enumerate(sys.argv[2:]):
        name, _, words = words.partition('=')
        work_dir = Path(sys.argv[1]) / name
        work_dir.mkdir(exist_ok=True)
        size, *rest = words.split(':')
        victim, kill = None, None
        if rest:
            victim, kill = int(rest[0]), (rest[1], int(rest[2]))
        sys.stdout.write(json.dumps(run(work_dir, number, int(size), victim, kill)) + '\n')
        sys.stdout.flush()


if __name__ == '__main__':
    main()
