"""Tools run in forks of this process, as ranks that find each other, and killed at a moment.

A moment is a name and a number: at its n-th time the process kills itself. The library knows
nothing of it: the functions are replaced in the fork.
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
from mmengine.config import Config
from mmengine.runner import CheckpointLoader, Runner
from torch import distributed
from yapf.yapflib import yapf_api

from mmscale.engine import SliceParallel, SubnetEvaluator

ROOT = Path(__file__).resolve().parents[2]
TRAIN, SEARCH = (str(ROOT / 'tools' / name) for name in ('train.py', 'search.py'))
# Seconds in which a rank ends by itself whose neighbour is dead.
PATIENCE = 120

SEARCH_MOMENTS = ('evaluation', 'append', 'appended', 'gather', 'result')
TRAIN_MOMENTS = ('backward', 'all_reduce', 'checkpoint', 'checkpoint_written', 'record')


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class Countdown:
    """Whether it is the n-th time."""

    def __init__(self, number):
        self.left = number

    def __call__(self):
        self.left -= 1
        return self.left == 0


def _before(owner, name, is_now):
    function = getattr(owner, name)

    def killed(*args, **kwargs):
        if is_now():
            die()
        return function(*args, **kwargs)

    setattr(owner, name, killed)


def _name_of(descriptor):
    return Path(os.readlink(f'/proc/self/fd/{descriptor}')).name


def _on_write(is_now, is_meant):
    """Half of what is written reaches the file."""
    write = os.write

    def killed(descriptor, data):
        if is_meant(_name_of(descriptor)) and is_now():
            write(descriptor, data[: len(data) // 2])
            die()
        return write(descriptor, data)

    os.write = killed


def _on_sync(is_now, is_meant, share=1.0):
    """The file is whole, or cut to a share of it, and not yet synced."""
    fsync = os.fsync

    def killed(descriptor):
        if is_meant(_name_of(descriptor)) and is_now():
            os.ftruncate(descriptor, int(os.fstat(descriptor).st_size * share))
            die()
        fsync(descriptor)

    os.fsync = killed


def arm(moment, number):
    """Makes this process kill itself at a moment's n-th time."""
    is_now = Countdown(number)
    if moment == 'evaluation':
        # The subnet is cut out, and not yet scored.
        _before(SubnetEvaluator, '_score', is_now)
    elif moment == 'append':
        _on_write(is_now, lambda name: name.startswith('rank'))
    elif moment == 'appended':
        _on_sync(is_now, lambda name: name.startswith('rank'))
    elif moment == 'gather':
        # By whatever way the ranks exchange their results.
        for name in ('all_gather', 'all_gather_object'):
            _before(distributed, name, is_now)
    elif moment == 'result':
        _on_sync(is_now, lambda name: 'json' in name and not name.startswith('rank'), 0.5)
    elif moment == 'backward':
        _before(torch.Tensor, 'backward', is_now)
    elif moment == 'all_reduce':
        _before(SliceParallel, 'reduce_gradients', is_now)
    elif moment == 'checkpoint':
        _on_sync(is_now, lambda name: 'iter_' in name, 0.5)
    elif moment == 'checkpoint_written':
        # It has its name; what names the last one is old, or half written.
        _on_sync(is_now, lambda name: 'last_checkpoint' in name, 0.5)
    elif moment == 'record':
        _on_sync(is_now, lambda name: 'last_checkpoint' in name)
    else:
        raise ValueError(moment)


def _run(rank, world_size, port, arguments, log, moment, before):
    # The handler of a parent that is pytest's must not act in its place.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    sys.stdout = sys.stderr = os.fdopen(2, 'w', buffering=1)
    # What takes most of the time of so short a run: to print the config and the environment.
    yapf_api.FormatCode = lambda code, **_: (code, True)
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
    if moment is not None:
        arm(*moment)
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
        moments: Per rank the moment at which it kills itself.
        before: Called with the rank in each process, before the tool.
    """

    def __init__(self, arguments, log, world_size=2, moments=None, before=None):
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
                target=_run,
                args=(
                    rank, world_size, port, arguments, self.log, (moments or {}).get(rank), before
                ),
            )
            for rank in range(world_size)
        ]  # fmt: skip
        for process in self.processes:
            process.start()

    def kill(self, ranks):
        for rank in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.processes[rank].pid, signal.SIGKILL)

    def signal(self, rank, number):
        os.kill(self.processes[rank].pid, number)

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


def leaves(value, prefix=''):
    """Every leaf of a nested state dict by its path."""
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
            is_tensor = torch.is_tensor(value)
            assert torch.equal(value, right[name]) if is_tensor else value == right[name], name


def write_config(config, path):
    Config(dict(config)).dump(str(path))
    return path
