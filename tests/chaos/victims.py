"""Processes that run a tool and are killed at a moment.

A moment is a name and a number: at its n-th time the process kills itself. The library knows
nothing of it: the functions are replaced in the fork.
"""

import os
import signal
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader
from torch import distributed

from mmscale.engine import SliceParallel, SubnetEvaluator

ROOT = Path(__file__).resolve().parents[2]
TRAIN, SEARCH = (str(ROOT / 'tools' / name) for name in ('train.py', 'search.py'))

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


def killed(moments):
    """Has ranks, each by a moment and a number, kill themselves; for ``before`` of ``Ranks``."""

    def before(rank):
        if rank in moments:
            arm(*moments[rank])

    return before


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
