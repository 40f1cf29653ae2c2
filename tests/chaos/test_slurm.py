"""A training whose time is over, under stand-ins for Slurm: told, requeued, resumed, the same."""

import os
import socket
import subprocess
import sys

from forked_tools import Ranks
from victims import ROOT, TRAIN, assert_same_training, write_config

# One task; it knows the batch shell, which Slurm would signal.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
export SLURM_PROCID=0 SLURM_NTASKS=1 SLURM_LOCALID=0 SLURM_NODELIST=here BATCH_SHELL=$PPID
"$@" &
trap 'kill -USR1 $!' USR1
wait $!; code=$?
while kill -0 $! 2>/dev/null; do wait $!; code=$?; done
exit $code
"""
# What the script would run the second time, which a fork does sooner.
PYTHON = """#!/bin/sh
printf '%s\\n' "$@" > arguments
"""
SCONTROL = """#!/bin/sh
[ "$1 $2" = "show hostname" ] && echo 127.0.0.1 || echo "$@" >> calls
"""
# Imported with the config: in the fifth iteration of the first run the time is over.
TIME_LIMIT = """
import os, signal, time
from mmscale.engine import PreemptionHook, SliceParallel
reduce_gradients, note = SliceParallel.reduce_gradients, PreemptionHook._note
# No Event: a handler that sets one waits for ever where it interrupts its wait().
calls, told = [], []
def noted(self, *args):
    note(self, *args)
    told.append(0)
def reduced(wrapper, optimizer):
    calls.append(0)
    if len(calls) == 5 and os.environ['SLURM_RESTART_COUNT'] == '0':
        os.kill(int(os.environ['BATCH_SHELL']), signal.SIGUSR1)
        while not told:
            time.sleep(0.01)
    return reduce_gradients(wrapper, optimizer)
SliceParallel.reduce_gradients, PreemptionHook._note = reduced, noted
"""


def test_a_job_whose_time_is_over_is_requeued_and_ends_the_same(train_config, tmp_path):
    undisturbed = write_config(train_config, tmp_path / 'undisturbed.py')
    arguments = [TRAIN, undisturbed, '--work-dir', tmp_path / 'undisturbed']
    assert Ranks(arguments, tmp_path / 'log', world_size=1).wait() == [0]

    programs = {
        'srun': SRUN,
        'scontrol': SCONTROL,
        'python': PYTHON,
        'time_limit.py': TIME_LIMIT,
        # mmpretrain imports it where it can, which takes as long as all the rest.
        'mmdet.py': 'raise ImportError',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    config = train_config.to_dict()
    imports = [*config['custom_imports']['imports'], 'time_limit']
    path = write_config(config | {'custom_imports': dict(imports=imports)}, tmp_path / 'train.py')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    work_dir = tmp_path / 'wörk dir'

    def run(restarts, python):
        environment = {
            **os.environ,
            'PATH': f'{tmp_path}:{os.environ["PATH"]}',
            'PYTHON': str(python),
            'PYTHONPATH': str(tmp_path),
            'GPUS': '1',
            'MASTER_PORT': str(port),
            'SLURM_JOB_ID': '7',
            'SLURM_RESTART_COUNT': str(restarts),
        }
        command = [ROOT / 'tools' / 'slurm_train.sh', 'gpu', 'job', path, work_dir]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    first = run(0, sys.executable)
    assert first.returncode == 0, first.stderr[-3000:]
    assert 'requeueing job 7 after SIGUSR1' in first.stderr
    assert (tmp_path / 'calls').read_text().splitlines() == ['show job 7', 'requeue 7']
    assert not (work_dir / 'iter_12.pth').exists() and (work_dir / 'iter_5.pth').exists()
    second = run(1, tmp_path / 'python')
    assert second.returncode == 0, second.stderr[-3000:]
    assert 'requeue' not in second.stderr
    flag, *arguments = (tmp_path / 'arguments').read_text().splitlines()
    assert (flag, arguments[0], '--resume' in arguments) == ('-u', TRAIN, True)

    def requeued(rank):
        sys.path.insert(0, str(tmp_path))
        os.environ.update(
            SLURM_PROCID='0', SLURM_NTASKS='1', SLURM_LOCALID='0', SLURM_NODELIST='here',
            MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), SLURM_RESTART_COUNT='1',
        )  # fmt: skip

    log = tmp_path / 'requeued'
    assert Ranks(arguments, log, world_size=1, before=requeued).wait() == [0], log.read_text()
    one, other = work_dir / 'iter_12.pth', tmp_path / 'undisturbed' / 'iter_12.pth'
    assert_same_training(one, other)
