"""The shell scripts hand every argument through; a stand-in for Python or srun prints them."""

import os
import subprocess
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
PRINT_ARGUMENTS = '#!/bin/sh\nprintf "%s\\n" "$@" "OMP=$OMP_NUM_THREADS/$OMP_WAIT_POLICY"\n'


@pytest.fixture
def launch(tmp_path):
    for name in ('python', 'srun'):
        program = tmp_path / name
        program.write_text(PRINT_ARGUMENTS)
        program.chmod(0o755)
    (tmp_path / 'config.py').touch()

    def run(script, *arguments, **variables):
        environment = {
            'PATH': f'{tmp_path}:{os.environ["PATH"]}',
            'PYTHON': str(tmp_path / 'python'),
        }
        return subprocess.run(
            [str(TOOLS / script), *arguments],
            cwd=tmp_path,
            env=environment | variables,
            capture_output=True,
            text=True,
        )

    return run


@pytest.mark.parametrize(
    ('script', 'tool', 'positional'),
    [
        ('dist_train.sh', 'train.py', ['config.py']),
        ('dist_search.sh', 'search.py', ['config.py']),
        ('dist_test.sh', 'test.py', ['config.py', 'epoch_1.pth']),
    ],
)
def test_torchrun_gets_the_processes_and_the_tool_its_arguments(launch, script, tool, positional):
    result = launch(script, *positional, '2', '--cfg-options', 'name=two words')
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[:4] == ['-m', 'torch.distributed.run', '--nnodes=1', '--nproc-per-node=2']
    # A port of 0 is a free one.
    assert '--rdzv-endpoint=127.0.0.1:0' in lines
    tool_arguments = [*positional, '--launcher', 'pytorch', '--cfg-options', 'name=two words']
    assert lines[lines.index(str(TOOLS / tool)) + 1 : -1] == tool_arguments
    assert lines[-1] == 'OMP=1/PASSIVE'


def test_environment_places_several_machines(launch):
    variables = {'NNODES': '2', 'NODE_RANK': '1', 'MASTER_ADDR': 'first', 'PORT': '29600'}
    lines = launch('dist_train.sh', 'config.py', '4', **variables).stdout.splitlines()
    assert lines[2:7] == [
        '--nnodes=2',
        '--nproc-per-node=4',
        '--node-rank=1',
        '--master-addr=first',
        '--master-port=29600',
    ]


@pytest.mark.parametrize('script', ['slurm_train.sh', 'slurm_search.sh'])
def test_slurm_gets_the_job_and_the_tool_its_arguments(launch, script):
    variables = {'GPUS': '2', 'SRUN_ARGS': '--time=1:00 --exclusive'}
    result = launch(script, 'gpu', 'job', 'config.py', 'out dir', '--resume', **variables)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert {'--partition=gpu', '--ntasks=2', '--ntasks-per-node=2', '--exclusive'} <= set(lines)
    tool = str(TOOLS / script.replace('slurm_', '').replace('.sh', '.py'))
    tool_arguments = ['config.py', '--work-dir', 'out dir', '--launcher', 'slurm', '--resume']
    assert lines[lines.index(tool) + 1 : -1] == tool_arguments


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['dist_train.sh'], 'expected CONFIG N, got 0 of 2'),
        (['dist_search.sh', 'config.py'], 'expected CONFIG N, got 1 of 2'),
        (['dist_test.sh', 'config.py', '2'], 'expected CONFIG CHECKPOINT N, got 2 of 3'),
        (['dist_train.sh', 'missing.py', '2'], "CONFIG 'missing.py' is not a file"),
        (['dist_train.sh', 'config.py', '0'], "whole number from 1, got '0'"),
        (['dist_train.sh', 'config.py', '--resume'], "whole number from 1, got '--resume'"),
        (['slurm_train.sh', 'gpu', 'job', 'config.py'], 'got 3 of 4'),
        (['slurm_search.sh', 'gpu', 'job', 'missing.py', 'out'], "'missing.py' is not a file"),
    ],
)
def test_bad_usage_is_refused_with_the_usage(launch, arguments, message):
    result = launch(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert f'Usage: tools/{arguments[0]}' in result.stderr
    assert result.stdout == ''


@pytest.mark.parametrize('script', sorted(path.name for path in TOOLS.glob('*_train.sh')))
def test_help_shows_the_usage(launch, script):
    result = launch(script, '--help')
    assert result.returncode == 0
    assert f'Usage: tools/{script}' in result.stdout
