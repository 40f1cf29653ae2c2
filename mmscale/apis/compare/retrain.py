"""Trains several networks from their Archs, some at a time, and tests each."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from mmscale.apis.reports.run_files import json_lines
from mmscale.arch import Arch
from mmscale.arch.checks import check_keys, integer, number
from mmscale.arch.json_files import read_json
from mmscale.errors import UsageError
from mmscale.files import open_to_append, write_json
from mmscale.launch.command_line import set_environment


@dataclass(frozen=True)
class RetrainJob:
    """One network to train and test.

    Attributes:
        name: For the log; unique.
        config: Config file of an ImageClassifier with an ArchNet.
        arch: JSON file of the Arch.
        work_dir: Folder of logs and checkpoints; ``test.json`` is written last.
        options: Overrides of the config.
        weights: File of the weights to start from; by default they are random.
    """

    name: str
    config: str
    arch: str
    work_dir: str
    options: dict[str, object]
    weights: str | None = None

    @property
    def result_file(self) -> Path:
        """Where the test accuracy is kept."""
        return Path(self.work_dir) / 'test.json'

    @property
    def settings(self) -> dict[str, object]:
        """What the outcome depends on, as plain JSON data."""
        from mmengine.config import Config

        config = Config.fromfile(self.config, import_custom_modules=False)
        settings = {
            'config': config.to_dict(),
            'arch': Arch.from_json(self.arch).to_json(),
            'options': self.options,
        }
        if self.weights is not None:
            content = Path(self.weights).read_bytes()
            settings['weights'] = hashlib.sha256(content).hexdigest()
        return json.loads(json.dumps(settings, default=str))

    def result(self) -> dict | None:
        """The outcome of an earlier run with equal settings, or None.

        Raises:
            UsageError: The file is damaged; without it the network is tested anew.
        """
        if not self.result_file.is_file():
            return None
        name = str(self.result_file)
        found = check_keys(name, read_json(name), None, ('accuracy', 'images', 'settings'))
        number(f'{name}: accuracy', found['accuracy'], 0, 100)
        integer(f'{name}: images', found['images'])
        return found if found['settings'] == self.settings else None


def _forget_other_settings(job: RetrainJob) -> None:
    """Makes a job start anew where an earlier run in its work dir had other settings."""
    file = Path(job.work_dir) / 'settings.json'
    try:
        known = read_json(file)
    except (FileNotFoundError, UsageError):
        known = None
    if known != job.settings:
        # First, or a kill between the two would leave a checkpoint of the other settings.
        (Path(job.work_dir) / 'last_checkpoint').unlink(missing_ok=True)
        write_json(file, job.settings)


def run_job(job: RetrainJob) -> dict:
    """Trains and tests one network, or continues where an earlier run stopped.

    An earlier run with other settings is not continued.

    Returns:
        ``accuracy`` in percent, number of test ``images``, ``settings``.

    Raises:
        UsageError: A part of the config is unknown or not allowed.
    """
    set_environment()
    Path(job.work_dir).mkdir(parents=True, exist_ok=True)
    with (
        open_to_append(Path(job.work_dir) / 'console.log') as log,
        redirect_stdout(log),
        redirect_stderr(log),
    ):
        from mmengine.config import Config

        from mmscale.launch.log import run
        from mmscale.launch.resume import find_checkpoints
        from mmscale.launch.runner import build_runner

        _forget_other_settings(job)
        config = Config.fromfile(job.config)
        config.merge_from_dict({**job.options, 'model.backbone.arch': job.arch})
        config.work_dir = job.work_dir
        config.launcher = 'none'
        # With both, MMEngine would resume from the weights.
        config.resume = job.weights is None or bool(find_checkpoints(job.work_dir))
        config.load_from = None if config.resume else job.weights
        # Runners are known by name, and several jobs share a process.
        config.experiment_name = f'{job.name}-{time.time_ns()}'
        runner = build_runner(config, 'train')
        run(runner, 'train')
        metrics = run(runner, 'test')
    result = {
        'accuracy': metrics['accuracy/top1'],
        'images': len(runner.test_dataloader.dataset),
        'settings': job.settings,
    }
    write_json(job.result_file, result)
    return result


def _end_with_parent(parent: Connection) -> None:
    """Prepares a process that trains: it ends when the other end of a pipe is closed.

    That is when the parent gives up or dies, however it dies. Ctrl-C is for the parent alone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait() -> None:
        parent.poll(None)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def run_jobs(
    jobs: Sequence[RetrainJob],
    processes: int,
    on_progress: Callable[[RetrainJob, int], None] | None = None,
) -> dict[str, dict]:
    """Runs jobs in `processes` processes, the first ones first.

    Args:
        jobs: What to train; give the longest first.
        processes: How many train at the same time.
        on_progress: Called every second or so with a job and its iterations so far.

    Returns:
        Results by the jobs' names, see :func:`run_job`.

    Raises:
        Exception: What the first job that failed raised; the others are ended.
    """
    results = {job.name: found for job in jobs if (found := job.result()) is not None}
    pending = [job for job in jobs if job.name not in results]
    if not pending:
        return results
    context = get_context('spawn')
    reader, writer = context.Pipe(duplex=False)
    # The writer closes first and ends the processes, or leaving the pool would wait for them.
    with (
        reader,
        ProcessPoolExecutor(processes, context, _end_with_parent, (reader,)) as pool,
        writer,
    ):
        futures: dict[str, Future] = {job.name: pool.submit(run_job, job) for job in pending}
        while not all(future.done() for future in futures.values()):
            time.sleep(1)
            for job in pending:
                failed = futures[job.name].done() and futures[job.name].exception()
                if failed:
                    # As add_note does, which Python 3.10 lacks; it does not print notes either.
                    note = f'{job.name}: the log is {job.work_dir}/console.log'
                    failed.__notes__ = [*getattr(failed, '__notes__', []), note]
                    raise failed
                if on_progress is not None:
                    on_progress(job, iterations_done(job.work_dir))
        for job in pending:
            results[job.name] = futures[job.name].result()
    return results


def iterations_done(work_dir: str) -> int:
    """Training iterations that the newest log in a work dir tells of."""
    files = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    lines = json_lines(files[-1]) if files else ()
    found = [line.get('iter') for line in lines if line and 'loss' in line]
    return max((number for number in found if type(number) is int), default=0)
