"""The shell scripts hand every argument and signal through to stand-ins for Python and Slurm."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

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


def torchrun(lines):
    """What torchrun's own parser makes of its arguments, those of the tool apart."""
    assert lines[:2] == ['-m', 'torch.distributed.run']
    return get_args_parser().parse_args(lines[2:-1])


@pytest.mark.parametrize('tool', ['train', 'search', 'test'])
def test_torchrun_gets_the_processes_and_the_tool_its_arguments(launch, tool):
    positional = ['config.py', 'epoch_1.pth'] if tool == 'test' else ['config.py']
    options = ['--cfg-options', 'name=two words']
    result = launch(f'dist_{tool}.sh', *positional, '2', *options)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    found = torchrun(lines)
    assert (found.nnodes, found.nproc_per_node) == ('1', '2')
    # A port of 0 is a free one.
    assert found.rdzv_endpoint == '127.0.0.1:0'
    assert found.training_script == str(TOOLS / f'{tool}.py')
    assert found.training_script_args == [*positional, '--launcher', 'pytorch', *options]
    assert lines[-1] == 'OMP=1/PASSIVE'


def test_environment_places_several_machines(launch):
    variables = {'NNODES': '2', 'NODE_RANK': '1', 'MASTER_ADDR': 'first', 'PORT': '29600'}
    lines = launch('dist_train.sh', 'config.py', '4', **variables).stdout.splitlines()
    found = torchrun(lines)
    assert (found.nnodes, found.nproc_per_node, found.node_rank) == ('2', '4', 1)
    assert (found.master_addr, found.master_port) == ('first', 29600)


def test_elastic_arguments_reach_torchrun(launch):
    lines = launch(
        'dist_train.sh', 'config.py', '4', '--resume', NNODES='1:4', MASTER_ADDR='first',
        TORCHRUN_ARGS='--max-restarts=3 --rdzv-id=mine',
    ).stdout.splitlines()  # fmt: skip
    found = torchrun(lines)
    assert (found.nnodes, found.rdzv_backend, found.max_restarts) == ('1:4', 'c10d', 3)
    assert (found.rdzv_endpoint, found.rdzv_id) == ('first:29500', 'mine')
    assert found.training_script_args[-1] == '--resume'


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


def test_slurm_tests_a_checkpoint(launch):
    result = launch('slurm_test.sh', 'gpu', 'job', 'config.py', 'a b.pth', '--out', 'x.pkl')
    lines = result.stdout.splitlines()
    arguments = ['config.py', 'a b.pth', '--launcher', 'slurm', '--out', 'x.pkl']
    assert lines[lines.index(str(TOOLS / 'test.py')) + 1 : -1] == arguments


@pytest.mark.parametrize(
    ('file', 'arguments', 'resumes'),
    [
        (None, [], False),
        ('log.txt', [], False),
        ('iter_3.pth', [], True),
        ('archive/rank0000.jsonl', [], True),
        ('iter_3.pth', ['--resume', 'mine.pth'], False),
    ],
)
def test_slurm_resumes_where_there_is_something(launch, file, arguments, resumes, tmp_path):
    work_dir = tmp_path / 'ö [1] *'
    if file is not None:
        (work_dir / file).parent.mkdir(parents=True)
        (work_dir / file).touch()
    result = launch('slurm_train.sh', 'gpu', 'job', 'config.py', str(work_dir), *arguments)
    lines = result.stdout.splitlines()
    assert lines[lines.index('--work-dir') + 1] == str(work_dir)
    assert lines.count('--resume') == (resumes or bool(arguments))
    assert (lines[lines.index('--launcher') - 1] == '--resume') == resumes


# Tells the batch shell, or with B= itself, what Slurm tells a job whose time is over.
SRUN = """#!/bin/bash
trap 'echo passed >> calls; exit ${CODE:-75}' USR1
[ -z "$SIGNAL" ] || kill -"$SIGNAL" "$PPID"
for _ in {1..100}; do [ -z "$SIGNAL" ] || sleep 0.1; done
exit "${CODE:-0}"
"""
SCONTROL = """#!/bin/sh
echo "$@" >> calls
echo "JobId=7 JobState=$STATE"
"""


@pytest.fixture
def batch(launch, tmp_path):
    """Runs a script as in a batch job; returns exit code, calls of scontrol, and stderr."""
    for name, text in (('srun', SRUN), ('scontrol', SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def run(script='slurm_train.sh', **variables):
        variables = {'SLURM_JOB_ID': '7', 'STATE': 'RUNNING', 'SIGNAL': ''} | variables
        result = launch(script, 'gpu', 'job', 'config.py', 'out', **variables)
        calls = tmp_path / 'calls'
        lines = calls.read_text().splitlines() if calls.exists() else []
        return result.returncode, lines, result.stderr

    return run


@pytest.mark.parametrize('number', ['USR1', 'TERM'])
def test_a_signal_is_passed_on_and_requeues_the_job(batch, number):
    code, calls, errors = batch(SIGNAL=number)
    assert (code, calls) == (0, ['passed', 'show job 7', 'requeue 7'])
    assert f'requeueing job 7 after SIG{number}' in errors


def test_a_search_that_a_signal_ends_is_requeued(batch):
    code, calls, _ = batch('slurm_search.sh', SIGNAL='USR1', CODE=str(128 + signal.SIGUSR1))
    assert (code, calls) == (0, ['passed', 'show job 7', 'requeue 7'])


def test_processes_that_slurm_told_itself_requeue_the_job(batch):
    for number in ('75', '138', '143'):
        code, calls, _ = batch(CODE=number)
        assert (code, calls[-1]) == (0, 'requeue 7')


@pytest.mark.parametrize('number', ['0', '1', '2', '137'])
def test_an_end_of_its_own_is_no_reason_to_requeue(batch, number):
    assert batch(CODE=number)[:2] == (int(number), [])


def test_a_cancelled_job_is_not_requeued(batch):
    code, calls, errors = batch(SIGNAL='TERM', STATE='CANCELLED')
    assert (code, calls) == (75, ['passed', 'show job 7'])
    assert 'cancelled' in errors


def test_without_a_batch_job_there_is_nothing_to_requeue(batch):
    code, calls, errors = batch(SIGNAL='USR1', SLURM_JOB_ID='')
    assert (code, calls) == (75, ['passed'])
    assert 'the same command goes on' in errors


def test_bad_usage_is_refused_with_the_usage(launch):
    for arguments, message in (
        (['dist_train.sh'], 'expected CONFIG N, got 0 of 2'),
        (['dist_search.sh', 'config.py'], 'expected CONFIG N, got 1 of 2'),
        (['dist_test.sh', 'config.py', '2'], 'expected CONFIG CHECKPOINT N, got 2 of 3'),
        (['dist_train.sh', 'missing.py', '2'], "CONFIG 'missing.py' is not a file"),
        (['dist_train.sh', 'config.py', '0'], "whole number from 1, got '0'"),
        (['dist_train.sh', 'config.py', '--resume'], "whole number from 1, got '--resume'"),
        (['slurm_train.sh', 'gpu', 'job', 'config.py'], 'got 3 of 4'),
        (['slurm_search.sh', 'gpu', 'job', 'missing.py', 'out'], "'missing.py' is not a file"),
    ):
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
