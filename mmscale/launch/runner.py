"""From a config to a runner, in one process or several: what the tools share."""

from __future__ import annotations

import atexit
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmscale.errors import FOREIGN_ERRORS, MMScaleError, UsageError, one_line
from mmscale.launch.command_line import set_environment
from mmscale.launch.defaults import complete_dataloaders, log_in_one_process, make_durable
from mmscale.launch.fit import (
    check_arch,
    check_classes,
    check_last_batch,
    check_optimizer,
    check_pretrained,
)
from mmscale.launch.installed import installed_twice
from mmscale.quiet import quiet_imports
from mmscale.settings import flat
from mmscale.untrusted import check_work_dir

if TYPE_CHECKING:
    from mmengine.config import Config
    from mmengine.runner import Runner


# Where each launcher says which of the processes this one is.
_PLACES = {
    'pytorch': {'RANK': 'RANK', 'WORLD_SIZE': 'WORLD_SIZE', 'LOCAL_RANK': 'LOCAL_RANK'},
    'slurm': {
        'RANK': 'SLURM_PROCID',
        'WORLD_SIZE': 'SLURM_NTASKS',
        'LOCAL_RANK': 'SLURM_LOCALID',
    },
    'mpi': {
        'RANK': 'OMPI_COMM_WORLD_RANK',
        'WORLD_SIZE': 'OMPI_COMM_WORLD_SIZE',
        'LOCAL_RANK': 'OMPI_COMM_WORLD_LOCAL_RANK',
    },
}
_STARTERS = {
    'pytorch': 'tools/dist_train.sh, dist_search.sh or dist_test.sh',
    'slurm': 'tools/slurm_train.sh or slurm_search.sh',
    'mpi': 'mpirun',
}
# Seconds; processes of one run reach the same mistake within them.
_PATIENCE = 10
# What shells say of a program that SIGINT ended.
_INTERRUPTED = 130


def _part_named(config: Config, error: BaseException) -> str:
    """The part of a config whose class an error names, as ``custom_hooks.1``; or nothing."""
    words = set(re.findall(r'\w+', str(error)))
    for key, value in flat(config.to_dict()).items():
        part, _, last = key.rpartition('.')
        if last == 'type' and str(value).rpartition('.')[2] in words:
            return part
    return ''


@contextmanager
def _one_line_of(setting: str | Config) -> Iterator[None]:
    """Makes one line of what a part of a config raises.

    Args:
        setting: What the line begins with, where the error does not say it; or the whole config,
            in which the part is looked for that a foreign error is about.
    """
    try:
        yield
    except FOREIGN_ERRORS as error:
        if not isinstance(setting, str):
            is_ours = isinstance(error, MMScaleError)
            setting = '' if is_ours else _part_named(setting, error)
        prefix = f'{setting}: ' if setting else ''
        raise UsageError(f'{prefix}{one_line(error):.400}') from error


def _first_slurm_host() -> str:
    """The machine with rank 0, which Slurm names first.

    Raises:
        UsageError: There are several machines, and scontrol does not tell which.
    """
    nodes = os.environ.get('SLURM_NODELIST', '')
    try:
        hosts = subprocess.run(
            ['scontrol', 'show', 'hostname', nodes], capture_output=True, text=True, check=True
        ).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        hosts = []
    if hosts:
        return hosts[0]
    if set(nodes) & set(',['):
        raise UsageError(
            f'--launcher slurm: set MASTER_ADDR to the first host of SLURM_NODELIST={nodes}; '
            'scontrol does not tell it'
        )
    return '127.0.0.1'


def _join_processes(launcher: str, dist_cfg: Mapping[str, Any]) -> None:
    """Joins the processes that a launcher started, with gloo where there is no GPU.

    Args:
        launcher: Name of the launcher.
        dist_cfg: As in ``env_cfg``; ``timeout``: seconds to wait for other processes, ever.

    Raises:
        UsageError: The launcher did not start this process.
    """
    from torch import cuda, distributed

    if distributed.is_initialized():
        return
    places = _PLACES[launcher]
    needed = [*places.values(), *(() if launcher == 'slurm' else ('MASTER_ADDR',))]
    missing = [name for name in needed if name not in os.environ]
    if missing:
        raise UsageError(
            f'--launcher {launcher}: {", ".join(missing)} is not set in the environment; '
            f'start the processes with {_STARTERS[launcher]}'
        )
    if cuda.is_available():
        return  # MMEngine's launchers insist on a GPU; where there is one they do the rest
    for name, place in places.items():
        os.environ[name] = os.environ[place]
    if launcher == 'slurm' and 'MASTER_ADDR' not in os.environ:
        os.environ['MASTER_ADDR'] = _first_slurm_host()
    os.environ.setdefault('MASTER_PORT', '29500')
    timeout = dist_cfg.get('timeout')
    try:
        distributed.init_process_group('gloo', timeout=timeout and timedelta(seconds=timeout))
    except distributed.DistError as error:
        raise UsageError(
            f'--launcher {launcher}: not all of {os.environ["WORLD_SIZE"]} processes came '
            f'together at {os.environ["MASTER_ADDR"]}:{os.environ["MASTER_PORT"]} '
            f'({one_line(error):.120})'
        ) from error


def build_runner(config: Config, phase: str) -> Runner:
    """Builds the runner of a config, on GPUs or, where there is none, on CPUs with gloo.

    Data and loop are built and the checkpoint is read here too, so that a mistake in them shows
    before any work starts.

    Args:
        config: The config.
        phase: ``train`` or ``test``; a search is a test loop.

    Raises:
        UsageError: A part of the config is unknown or not allowed, the parts do not fit each
            other, or the checkpoint is no good.
        UntrustedFileError: A link leads out of the work dir.
    """
    for key, kind, expected in (
        ('default_scope', str, 'a name'),
        ('randomness', dict, 'a dict'),
        ('load_from', (str, Path), 'the path of a checkpoint'),
    ):
        value = config.get(key)
        if value is not None and not isinstance(value, kind):
            raise UsageError(f'{key}={value!r:.60} must be {expected}')
    if isinstance(config.get('work_dir'), (str, Path)):
        path = os.path.abspath(config.work_dir)
        if path != path.encode(errors='replace').decode():
            raise UsageError(
                f'work_dir={config.work_dir}: a byte in its path is no UTF-8, and MMEngine writes '
                'the paths of checkpoints as text: take another'
            )
        check_work_dir(config.work_dir)
    load_from = config.get('load_from')
    if load_from and '://' not in str(load_from) and not os.path.isfile(load_from):
        name = ' '.join(str(load_from).split())
        raise UsageError(f'load_from={name:.300} is not a file; it must name a checkpoint')
    with quiet_imports():
        import mmpretrain.models  # noqa: F401
        from mmengine.registry import RUNNERS
        from torch import cuda

        from mmscale.engine import FittingLoadHook
        from mmscale.launch.log import ShortLogRunner
        from mmscale.launch.resume import check_checkpoint, choose_checkpoint
        from mmscale.launch.schedules import schedule_mistakes
        from mmscale.models.checkpoints import restrict_torch_load
    # The runner reads weights again, whenever it runs.
    restrict_torch_load()
    if config.get('default_scope') == 'mmpretrain':
        complete_dataloaders(config)
    if phase == 'train':
        make_durable(config)
    with _one_line_of(config):
        if config.get('launcher', 'none') != 'none':
            _join_processes(config.launcher, config.get('env_cfg', {}).get('dist_cfg', {}))
            log_in_one_process(config)
            if not cuda.is_available() and config.get('model_wrapper_cfg') is None:
                # As MMEngine would, but for its device_ids, which only a GPU has.
                config.model_wrapper_cfg = dict(
                    type='MMDistributedDataParallel',
                    device_ids=None,
                    broadcast_buffers=False,
                    find_unused_parameters=config.get('find_unused_parameters', False),
                )
        is_stock = 'runner_type' not in config
        runner = ShortLogRunner.from_cfg(config) if is_stock else RUNNERS.build(config)
        runner.register_hook(FittingLoadHook(all_weights=phase == 'test'))
        check_arch(runner)
        if phase == 'train':
            check_pretrained(runner)
        runner._resume = phase == 'train' and bool(config.get('resume'))
        if load_from and not runner._resume:
            check_checkpoint(runner, load_from, resume=False)
        elif phase == 'test' and config.get('resume'):
            runner._load_from = choose_checkpoint(runner)
    with _one_line_of(f'{phase}_cfg or {phase}_dataloader'):
        loop = getattr(runner, f'{phase}_loop')
    if loop is None:
        raise UsageError(f'the config has no {phase}_cfg')
    check_classes(runner)
    if phase == 'train':
        with _one_line_of('val_cfg or val_dataloader'):
            _ = runner.val_loop
        check_classes(runner)
        check_last_batch(runner)
        # In the order of Runner.train, which then finds it done.
        check_optimizer(config)
        with _one_line_of('optim_wrapper'):
            runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
            runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
            runner.auto_scale_lr = None
        if runner.param_schedulers is not None:
            with _one_line_of('param_scheduler'):
                runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
        for mistake in schedule_mistakes(runner):
            runner.logger.warning(mistake)
    if runner._resume:
        # Last, as the checkpoint has to fit all of this.
        with _one_line_of(config):
            if load_from:
                check_checkpoint(runner, load_from, resume=True)
            else:
                # In place of MMEngine's choice: what `last_checkpoint` names, whole or not.
                runner._load_from = choose_checkpoint(runner)
                runner._resume = runner._load_from is not None
    return runner


def _leave_processes(code: int) -> None:
    """Ends this process, if it is one of several; otherwise does nothing.

    The interpreter is not taken down: now and then a thread that a library left behind aborts it
    there ("terminate called without an active exception"), which the launcher takes for a failure.

    Args:
        code: Exit code.
    """
    if 'torch' in sys.modules:
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def _rank() -> str:
    """Which of the processes that a launcher started this is; ``0`` if none did."""
    ranks = [os.environ.get(place['RANK']) for place in _PLACES.values()]
    return next((rank for rank in ranks if rank is not None), '0')


def run_tool(main: Callable[[], Any]) -> None:
    """Runs a tool's main function; an error that says it all becomes one line and exit code 2.

    Such are ours, those of the operating system, and numbers that are not finite.

    Of several processes that make the same mistake only the first says so: its end makes the
    launcher end the others. A mistake of another process alone is its own to tell.
    """
    set_environment()
    doubled = installed_twice()
    if doubled and _rank() == '0':
        sys.stderr.write(f'warning: {doubled}\n')
    try:
        try:
            main()
        except SystemExit as leaving:
            if isinstance(leaving.code, int):
                _leave_processes(leaving.code)
            raise
        _leave_processes(0)
    except (MMScaleError, OSError, FloatingPointError) as error:
        rank = _rank()
        if rank != '0':
            time.sleep(_PATIENCE)
        who = '' if rank == '0' else f'rank {rank}: '
        sys.stderr.write(f'error: {who}{one_line(error)}\n')
        sys.exit(2)
    except KeyboardInterrupt:
        if _rank() == '0':
            sys.stderr.write('interrupted\n')
        _leave_processes(_INTERRUPTED)
        sys.exit(_INTERRUPTED)
