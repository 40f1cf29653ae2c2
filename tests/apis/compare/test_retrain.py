"""Training of several networks: what is done is kept, what changed is not, nothing lingers."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_jobs
import pytest
from fake_jobs import fake_job, fake_result, log_line

from mmscale.apis.compare import retrain
from mmscale.apis.compare.retrain import RetrainJob, iterations_done, run_jobs
from mmscale.arch import get_arch
from mmscale.errors import UsageError

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def make_job(tmp_path):
    config = tmp_path / 'config.py'
    config.write_text('model = dict(backbone=dict(arch=None))\nlr = 0.1\n')
    arch = tmp_path / 'arch.json'
    get_arch('scalenet-s0').save(arch)

    def make(name, **options):
        return RetrainJob(name, str(config), str(arch), str(tmp_path / name), options)

    return make


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(retrain, 'run_job', fake_job)


def is_alive(pid):
    status = Path(f'/proc/{pid}/stat')
    return status.is_file() and status.read_text().rpartition(')')[2].split()[0] != 'Z'


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'it did not happen'
        time.sleep(0.05)


# ---------------------------------------------------------------------- results of earlier runs


def test_a_result_is_kept_while_the_settings_are_the_same(make_job):
    job = make_job('a', lr=0.2)
    assert job.result() is None
    expected = fake_job(job)
    assert job.result() == expected
    assert make_job('a', lr=0.2).result() == expected
    assert make_job('a', lr=0.3).result() is None
    assert make_job('a').result() is None


@pytest.mark.parametrize(
    'content', ['', '[]', '{"accuracy": 5}', '{"accuracy": "x", "images": 1, "settings": {}}']
)
def test_a_damaged_result_is_one_line(make_job, content):
    job = make_job('a')
    Path(job.work_dir).mkdir()
    job.result_file.write_text(content)
    with pytest.raises(UsageError, match=r'test\.json: '):
        job.result()


def test_settings_that_cannot_be_read_are_others(make_job):
    job = make_job('a')
    Path(job.work_dir).mkdir()
    last = Path(job.work_dir) / 'last_checkpoint'
    for content in ('\0', '[]'):
        last.touch()
        (last.parent / 'settings.json').write_text(content)
        retrain._forget_other_settings(job)
        assert not last.exists()
    last.touch()
    retrain._forget_other_settings(job)
    assert last.exists()


def test_a_changed_arch_or_config_makes_a_result_invalid(make_job):
    job = make_job('a', pair=(1, 2))
    fake_job(job)
    assert job.result() is not None
    original = Path(job.arch).read_text()
    get_arch('scalenet-s1').save(job.arch)
    assert job.result() is None
    Path(job.arch).write_text(original)
    assert job.result() is not None
    config = Path(job.config)
    config.write_text(config.read_text().replace('0.1', '0.05'))
    assert job.result() is None
    config.write_text(config.read_text().replace('0.05', '1e-1  # the same'))
    assert job.result() is not None


def test_changed_weights_to_start_from_make_a_result_invalid(make_job, tmp_path):
    weights = tmp_path / 'weights.pth'
    weights.write_bytes(b'one')
    job = dataclasses.replace(make_job('a'), weights=str(weights))
    fake_job(job)
    assert job.result() is not None
    assert make_job('a').result() is None
    weights.write_bytes(b'two')
    assert job.result() is None


def test_checkpoints_of_other_settings_are_not_continued(make_job):
    job = make_job('a', lr=0.2)
    checkpoint = Path(job.work_dir) / 'last_checkpoint'
    checkpoint.parent.mkdir()
    checkpoint.write_text('iter_500.pth')
    retrain._forget_other_settings(job)
    assert not checkpoint.exists()  # Whose it was is not known.
    checkpoint.write_text('iter_500.pth')
    retrain._forget_other_settings(job)
    assert checkpoint.read_text() == 'iter_500.pth'
    retrain._forget_other_settings(make_job('a', lr=0.3))
    assert not checkpoint.exists()


# ---------------------------------------------------------------------- progress


def test_iterations_done(tmp_path):
    assert iterations_done(str(tmp_path)) == 0
    log_line(tmp_path, iter=50, loss=2.0)
    log_line(tmp_path, iter=100, loss=1.5)
    log_line(tmp_path, step=100, **{'accuracy/top1': 60.0})
    assert iterations_done(str(tmp_path)) == 100
    # The next line is being written.
    path = tmp_path / '20260101_000000' / 'vis_data' / 'scalars.json'
    with path.open('a') as file:
        file.write('{"iter": 150, "lo')
    assert iterations_done(str(tmp_path)) == 100


def test_iterations_of_a_resumed_run_are_those_of_its_newest_log(tmp_path):
    log_line(tmp_path, '20260101_000000', iter=550, loss=2.0)
    # Resumed from the checkpoint of iteration 500: the log starts again after it.
    log_line(tmp_path, '20260102_000000', iter=510, loss=2.0)
    assert iterations_done(str(tmp_path)) == 510


# ---------------------------------------------------------------------- running


def test_jobs_run_and_report(make_job, fake):
    jobs = [make_job(name, seconds=1.2) for name in ('c', 'bb', 'aaa')]
    seen = []
    results = run_jobs(jobs, 2, lambda job, count: seen.append((job.name, count)))
    assert results == {job.name: fake_result(job) for job in jobs}
    assert {name for name, _ in seen} == {'c', 'bb', 'aaa'}
    assert max(count for _, count in seen) == 7
    pids = {Path(job.work_dir, 'pid').read_text() for job in jobs}
    assert len(pids) <= 2 and str(os.getpid()) not in pids
    assert not any(map(is_alive, pids))


def test_what_is_done_is_not_done_again(make_job, fake):
    done, new = make_job('done'), make_job('new')
    kept = fake_job(done)
    Path(done.work_dir, 'pid').unlink()
    assert run_jobs([done, new], 1) == {'done': kept, 'new': fake_result(new)}
    assert not Path(done.work_dir, 'pid').exists()
    # Nothing left to do: no process is started at all.
    assert set(run_jobs([done, new], 1)) == {'done', 'new'}


def test_a_failure_comes_through_and_ends_the_others(make_job, fake):
    jobs = [make_job('slow', seconds=600), make_job('bad', fail=True), make_job('never')]
    with pytest.raises(ValueError, match='no digits left') as caught:
        run_jobs(jobs, 2)
    assert caught.value.__notes__ == [f'bad: the log is {jobs[1].work_dir}/console.log']
    assert not is_alive(Path(jobs[0].work_dir, 'pid').read_text())
    assert jobs[0].result() is None


def test_a_killed_process_is_a_failure(make_job, fake):
    with pytest.raises(RuntimeError, match='terminated abruptly'):
        run_jobs([make_job('bad', die=True), make_job('slow', seconds=600)], 1)


@pytest.mark.parametrize('sent', [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_an_interrupted_or_killed_parent(make_job, tmp_path, sent):
    jobs = [make_job('one', seconds=600), make_job('two', seconds=600), make_job('three')]
    (tmp_path / 'jobs.json').write_text(json.dumps([dataclasses.asdict(job) for job in jobs]))
    command = [sys.executable, fake_jobs.__file__, str(tmp_path / 'jobs.json')]
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    parent = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    files = [Path(job.work_dir, 'pid') for job in jobs[:2]]
    wait_for(lambda: all(file.is_file() and file.read_text() for file in files))
    pids = [file.read_text() for file in files]
    parent.send_signal(sent)
    message = parent.communicate(timeout=60)[1].decode()
    assert ('KeyboardInterrupt' in message) == (sent == signal.SIGINT)
    wait_for(lambda: not any(map(is_alive, pids)))
    assert not Path(jobs[2].work_dir, 'pid').exists()
