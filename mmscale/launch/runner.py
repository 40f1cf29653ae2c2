"""From a config to a runner, in one process or several: what the tools share."""

from __future__ import annotations

import atexit
import os
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
from mmscale.launch.installed import installed_twice
from mmscale.quiet import quiet_imports
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


@contextmanager
def _one_line_of(setting: str = '') -> Iterator[None]:
    """Makes one line of what a part of a config raises.

    Args:
        setting: What the line begins with, where the error does not say it.
    """
    try:
        yield
    except FOREIGN_ERRORS as error:
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


def _check_arch(runner: Runner) -> None:
    """Checks that an ArchNet fits its images and the head after it.

    Raises:
        UsageError: One does not fit.
    """
    from mmpretrain.models import GlobalAveragePooling, LinearClsHead

    from mmscale.engine.wrappers import unwrapped_model
    from mmscale.models import ArchNet

    model = unwrapped_model(runner)
    backbone = getattr(model, 'backbone', None)
    if not isinstance(backbone, ArchNet):
        return
    arch = backbone.arch
    mean = getattr(getattr(model, 'data_preprocessor', None), 'mean', None)
    if mean is not None and len(mean) != arch.stem.in_channels:
        raise UsageError(
            f'model.backbone.arch: the Arch has stem.in_channels={arch.stem.in_channels}, but '
            f'data_preprocessor.mean has {len(mean)} channels'
        )
    head = getattr(model, 'head', None)
    if not isinstance(head, LinearClsHead):
        return
    neck = getattr(model, 'neck', None)
    is_last = backbone.out_indices == (len(arch.stages),)
    if (
        is_last
        and isinstance(neck, GlobalAveragePooling)
        and head.in_channels != arch.feature_channels
    ):
        raise UsageError(
            f'model.head.in_channels={head.in_channels} does not fit model.backbone.arch, whose '
            f'features have {arch.feature_channels} channels'
        )
    if arch.head.num_classes not in (0, head.num_classes):
        runner.logger.warning(
            'model.head.num_classes=%d replaces head.num_classes=%d of the Arch',
            head.num_classes,
            arch.head.num_classes,
        )


def _check_pretrained(runner: Runner) -> None:
    """Reads the weights that the init_cfg of a part of the model names, as the run will.

    Raises:
        ValueError: They are damaged or hold code; or they do not fit an ArchNet.
        FileNotFoundError: There is no such file.
    """
    from mmscale.engine.wrappers import unwrapped_model
    from mmscale.models import ArchNet
    from mmscale.models.checkpoints import load_checkpoint

    read = set()
    for module in unwrapped_model(runner).modules():
        if isinstance(module, ArchNet):
            module.read_pretrained()
            continue
        settings = getattr(module, 'init_cfg', None)
        for setting in settings if isinstance(settings, (list, tuple)) else [settings]:
            path = setting.get('checkpoint') if isinstance(setting, dict) else None
            # What lies elsewhere is read once, by the run.
            if isinstance(path, str) and '://' not in path and path not in read:
                read.add(path)
                load_checkpoint(path)


def _make_durable(config: Config) -> None:
    """Adds to a training what lets it survive kills, preemption and losses that are not finite.

    Raises:
        UsageError: Its hooks are no hooks.
    """
    hooks = config.setdefault('default_hooks', {})
    if not isinstance(hooks, dict):
        raise UsageError(f'default_hooks={hooks!r:.60} must be a dict')
    checkpoint = hooks.get('checkpoint', {'type': 'CheckpointHook', 'interval': 1})
    if checkpoint is not None and not isinstance(checkpoint, dict):
        raise UsageError(f'default_hooks.checkpoint={checkpoint!r:.60} must be a dict')
    is_stock = checkpoint and checkpoint.get('type') == 'CheckpointHook'
    # Another storage than files of this machine has its own ways.
    if is_stock and not checkpoint.get('backend_args') and not checkpoint.get('file_client_args'):
        hooks['checkpoint'] = {**checkpoint, 'type': 'mmscale.DurableCheckpointHook'}
    for name in ('Preemption', 'FiniteLoss'):
        hooks.setdefault(name, {'type': f'mmscale.{name}Hook'})


def _complete_dataloaders(config: Config) -> None:
    """Gives dataloaders what mmpretrain's configs leave to mmpretrain's own tools."""
    from torch import cuda

    for phase in ('train', 'val', 'test', 'calibration'):
        loader = config.get(f'{phase}_dataloader')
        if isinstance(loader, dict):
            loader.setdefault('collate_fn', dict(type='default_collate'))
            loader.setdefault('pin_memory', cuda.is_available())
            loader.setdefault('persistent_workers', bool(loader.get('num_workers')))


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
        check_work_dir(config.work_dir)
    load_from = config.get('load_from')
    if load_from and '://' not in str(load_from) and not os.path.isfile(load_from):
        name = ' '.join(str(load_from).split())
        raise UsageError(f'load_from={name:.300} is not a file; it must name a checkpoint')
    with quiet_imports():
        import mmpretrain.models  # noqa: F401
        from mmengine.registry import RUNNERS
        from mmengine.runner import Runner
        from torch import cuda

        import mmscale.engine  # noqa: F401
        from mmscale.launch.resume import check_checkpoint, choose_checkpoint
        from mmscale.models.checkpoints import restrict_torch_load
    # The runner reads weights again, whenever it runs.
    restrict_torch_load()
    if config.get('default_scope') == 'mmpretrain':
        _complete_dataloaders(config)
    if phase == 'train':
        _make_durable(config)
    with _one_line_of():
        if config.launcher != 'none':
            _join_processes(config.launcher, config.get('env_cfg', {}).get('dist_cfg', {}))
            hooks = config.setdefault('default_hooks', {})
            logger_hook = hooks.get('logger', {'type': 'LoggerHook'})
            if logger_hook and logger_hook.get('type') == 'LoggerHook':
                hooks['logger'] = {**logger_hook, 'type': 'mmscale.MainProcessLoggerHook'}
            if not cuda.is_available() and config.get('model_wrapper_cfg') is None:
                # As MMEngine would, but for its device_ids, which only a GPU has.
                config.model_wrapper_cfg = dict(
                    type='MMDistributedDataParallel',
                    device_ids=None,
                    broadcast_buffers=False,
                    find_unused_parameters=config.get('find_unused_parameters', False),
                )
        runner = RUNNERS.build(config) if 'runner_type' in config else Runner.from_cfg(config)
        _check_arch(runner)
        if phase == 'train':
            _check_pretrained(runner)
        if load_from:
            check_checkpoint(runner, load_from, bool(config.get('resume')))
        elif config.get('resume'):
            # In place of MMEngine's choice: what `last_checkpoint` names, whole or not.
            runner._load_from = choose_checkpoint(runner)
            runner._resume = runner._load_from is not None
    with _one_line_of(f'{phase}_cfg or {phase}_dataloader'):
        loop = getattr(runner, f'{phase}_loop')
    if loop is None:
        raise UsageError(f'the config has no {phase}_cfg')
    if phase == 'train':
        with _one_line_of('val_cfg or val_dataloader'):
            _ = runner.val_loop
        # In the order of Runner.train, which then finds it done.
        with _one_line_of('optim_wrapper'):
            runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
            runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
            runner.auto_scale_lr = None
        if runner.param_schedulers is not None:
            with _one_line_of('param_scheduler'):
                runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
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
