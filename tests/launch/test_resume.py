"""What a training is resumed from: found, read and refused through the tool."""

import os
import runpy
import sys
from pathlib import Path

import pytest
import torch

from mmscale.launch.config_text import read_config_text
from mmscale.launch.resume import find_checkpoints

TOOL = Path(__file__).resolve().parents[2] / 'tools' / 'train.py'
pytestmark = pytest.mark.usefixtures('own_environment')


def make_pipe(path):
    os.mkfifo(path)


def make_large(path):
    path.write_bytes(b'iter_1.pth' + b' ' * 2**20)


RECORDS = {
    'a pipe': make_pipe,
    'a folder': Path.mkdir,
    'a large file': make_large,
    'a long name': lambda path: path.write_text('x' * 5000),
    'a NUL': lambda path: path.write_bytes(b'iter_1.pth\0'),
    'bytes': lambda path: path.write_bytes(b'\xff\xfe'),
    'a device': lambda path: path.write_text('/dev/zero'),
}


@pytest.mark.parametrize('kind', RECORDS)
def test_a_record_that_is_none_is_left_out(kind, tmp_path):
    for number in (1, 2):
        (tmp_path / f'iter_{number}.pth').touch()
    RECORDS[kind](tmp_path / 'last_checkpoint')
    assert [path.name for path in find_checkpoints(tmp_path)] == ['iter_2.pth', 'iter_1.pth']


def test_a_long_text_is_not_parsed():
    with pytest.raises(
        ValueError, match='8,000,001 characters are more than the 524,288 of a config'
    ):
        read_config_text('a = 1\n' + '#' * 7_999_995)


def save(path, **changes):
    """A copy of the checkpoint, in which keys, dotted, have other values."""
    checkpoint = torch.load('work/iter_2.pth', weights_only=False)
    for key, value in changes.items():
        part = checkpoint
        *outer, last = key.split('__')
        for name in outer:
            part = part[int(name) if name.isdigit() else name]
        part[last] = value
    torch.save(checkpoint, path)


@pytest.fixture
def train(monkeypatch, capfd):
    """Runs tools/train.py in this process; returns its exit code and the lines it wrote."""

    def run(*words):
        monkeypatch.setattr(sys, 'argv', ['train.py', *map(str, words)])
        capfd.readouterr()
        code = 0
        try:
            runpy.run_path(str(TOOL), run_name='__main__')
        except SystemExit as leaving:
            code = leaving.code
        written = capfd.readouterr()
        return code, [line for line in (written.out + written.err).splitlines() if line]

    return run


def test_a_training_goes_on_from_nothing_else(train, small_config):
    words = [small_config, '--work-dir', 'work', '--no-validate', '--cfg-options']
    words += ['train_cfg.max_iters=2', 'default_hooks.checkpoint.interval=1']
    words += ['default_hooks.checkpoint.max_keep_ckpts=3', 'param_scheduler=None']
    assert train(*words, 'experiment_name=first')[0] == 0

    def resume(name, path):
        more = ['--resume', path] if path else ['--resume']
        return train(*words, f'experiment_name={name}', 'train_cfg.max_iters=3', *more)

    weight = next(iter(torch.load('work/iter_2.pth', weights_only=False)['state_dict']))
    cases = {
        'optimizer__state': ({0: 5}, 'optimizer.state[0]=5 must be a dict with texts as keys'),
        'meta__seed': (-1, 'meta.seed=-1 must be an integer in 0..4294967295'),
        'meta__cfg': ([1], 'meta.cfg=[1] must be the text of a config'),
        'message_hub': ('x', "message_hub: expected an object, got str 'x'"),
        'state_dict': ({weight: 5}, f'the checkpoint: {weight}=5 must be a Tensor'),
    }
    for key, (value, said) in cases.items():
        save('crafted.pth', **{key: value})
        code, lines = resume(key, 'crafted.pth')
        assert code == 2
        assert lines[-1] == f'error: crafted.pth: {said}'
        assert not any('Traceback' in line for line in lines)
    # The next older one is taken.
    save('work/iter_2.pth', optimizer__param_groups__0__lr=float('nan'))
    code, lines = resume('automatic', None)
    assert code == 0
    said = next(line for line in lines if 'resuming from the one before' in line)
    assert 'iter_2.pth: optimizer.param_groups[0].lr=nan must be a finite number' in said
    assert said.endswith('iter_1.pth')
    assert torch.load('work/iter_3.pth', weights_only=False)['meta']['iter'] == 3
