"""Tools run in forks of this process, one or several as ranks that find each other.

A fork has loaded torch and its packages already, which takes a process of its own seconds.
"""

import contextlib
import multiprocessing
import os
import runpy
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import mmpretrain.models  # noqa: F401
import torch
from mmengine.runner import Runner
from torch import distributed

# Seconds in which a rank ends by itself whose neighbour is dead.
PATIENCE = 120


def _run(rank, world_size, port, arguments, log, before):
    # The handler of a parent that is pytest's must not act in its place.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    sys.stdout = sys.stderr = os.fdopen(2, 'w', buffering=1)
    # What takes most of the time of so short a run: to find out about the environment.
    Runner._log_env = lambda *_: None
    if world_size > 1:
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(world_size),
            MASTER_ADDR='127.0.0.1',
            MASTER_PORT=str(port),
            TORCHELASTIC_USE_AGENT_STORE='True',
            TORCHELASTIC_RESTART_COUNT='0',
        )
        arguments = [*arguments, '--launcher', 'pytorch']
    torch.set_num_threads(1)
    if before is not None:
        before(rank)
    sys.argv = [str(argument) for argument in arguments]
    code = 0
    try:
        runpy.run_path(sys.argv[0], run_name='__main__')
    except SystemExit as error:
        code = error.code or 0
    finally:
        if sys.exc_info()[0] is not None:
            sys.excepthook(*sys.exc_info())
            code = 1
        sys.stderr.flush()
        # Nothing of the test's own process is cleaned up here.
        os._exit(code)


class Ranks:
    """Processes that run one tool together.

    Args:
        arguments: Path of the tool and its arguments.
        log: File for what they write.
        world_size: Their number.
        before: Called with the rank in each process, before the tool.
    """

    def __init__(self, arguments, log, world_size=2, before=None):
        self.log = Path(log)
        self._store = None
        if world_size > 1:
            # As torchrun has it: the port is taken before anybody is told.
            self._store = distributed.TCPStore(
                '127.0.0.1', 0, is_master=True, wait_for_workers=False,
                timeout=timedelta(seconds=PATIENCE),
            )  # fmt: skip
        port = self._store.port if self._store else None
        context = multiprocessing.get_context('fork')
        self.processes = [
            context.Process(
                target=_run, args=(rank, world_size, port, arguments, self.log, before)
            )
            for rank in range(world_size)
        ]
        for process in self.processes:
            process.start()

    def kill(self, ranks):
        for rank in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.processes[rank].pid, signal.SIGKILL)

    def wait(self):
        """Exit codes; every rank must end by itself."""
        end = time.monotonic() + PATIENCE
        for process in self.processes:
            process.join(max(0, end - time.monotonic()))
        alive = [rank for rank, process in enumerate(self.processes) if process.is_alive()]
        self.kill(alive)
        assert not alive, f'ranks {alive} hang: {self.log.read_text()[-3000:]}'
        return [process.exitcode for process in self.processes]


def finish(arguments, log, **settings):
    """Runs a tool on two processes to its end."""
    assert Ranks(arguments, log, **settings).wait() == [0, 0], Path(log).read_text()[-3000:]
