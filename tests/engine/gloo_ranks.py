"""Searches with an analytic score on forks of this process, which gloo joins."""

import os
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / 'search'))

import analytic_problem
from torch import distributed

from mmscale.engine.distributed import Ranks


def _work(work_dir, rank, size, store, kill):
    """One process."""
    distributed.init_process_group(
        'gloo', init_method=f'file://{store}', rank=rank, world_size=size
    )
    analytic_problem.search(work_dir, Ranks(), kill)
    distributed.destroy_process_group()


def run_ranks(work_dir, size, victim=None, kill=None):
    """Searches on some processes, resuming what is there; returns how each of them ended.

    Args:
        work_dir: Of the search.
        size: Number of processes.
        victim: The one that is killed.
        kill: When, a moment and a number; see ``analytic_problem.py``.
    """
    work_dir.mkdir(exist_ok=True)
    store = work_dir / f'store{len(list(work_dir.glob("store*")))}'
    children = []
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                _work(work_dir, rank, size, store, kill if rank == victim else None)
                code = 0
            except RuntimeError:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
