"""Jobs that only pretend to train, and a command that runs them: ``python fake_jobs.py JOBS``."""

import json
import os
import signal
import sys
import time
from pathlib import Path

from mmscale.apis.compare import retrain


def fake_result(job):
    return {'accuracy': 10.0 * len(job.name), 'images': 4, 'settings': job.settings}


def fake_job(job):
    """Takes as many seconds as the options say, or fails, or is killed."""
    folder = Path(job.work_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'pid').write_text(str(os.getpid()))
    if job.options.get('fail'):
        raise ValueError('no digits left')
    if job.options.get('die'):
        os.kill(os.getpid(), signal.SIGKILL)
    log_line(folder, iter=7, loss=1.0)
    time.sleep(job.options.get('seconds', 0))
    result = fake_result(job)
    job.result_file.write_text(json.dumps(result))
    return result


def log_line(folder, name='20260101_000000', **values):
    """Appends a line to a log as MMEngine's LocalVisBackend writes it."""
    path = Path(folder) / name / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('a') as file:
        file.write(json.dumps(values) + '\n')


if __name__ == '__main__':
    # A test runner in the background hands down that Ctrl-C is to be ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    retrain.run_job = fake_job
    jobs = json.loads(Path(sys.argv[1]).read_text())
    retrain.run_jobs([retrain.RetrainJob(**job) for job in jobs], 2)
