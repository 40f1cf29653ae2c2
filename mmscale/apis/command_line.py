"""What a user asks for: the command lines, configs and checkpoints of all tools, checked."""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmscale.quiet import quiet_imports
from mmscale.untrusted import NO

if TYPE_CHECKING:
    from mmengine.config import Config


# What MMEngine reads from a config: the arguments of its Runner, which takes a second to import,
# and what it looks up besides.
SETTINGS = frozenset(
    [
        'auto_scale_lr',
        'custom_hooks',
        'data_preprocessor',
        'default_hooks',
        'default_scope',
        'env_cfg',
        'experiment_name',
        'launcher',
        'load_from',
        'log_level',
        'log_processor',
        'model',
        'optim_wrapper',
        'param_scheduler',
        'randomness',
        'resume',
        'test_cfg',
        'test_dataloader',
        'test_evaluator',
        'train_cfg',
        'train_dataloader',
        'val_cfg',
        'val_dataloader',
        'val_evaluator',
        'visualizer',
        'work_dir',
        'activation_checkpointing',
        'compile',
        'efficient_conv_bn_eval',
        'find_unused_parameters',
        'model_wrapper_cfg',
        'runner_type',
        'sync_bn',
    ]
)

# How alike (difflib's ratio) a name of a config must be to a setting's to be a misspelling of it.
_MISSPELT = 0.88

# What a mistake in a config raises, in Python and in the libraries that it configures.
CONFIG_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,  # what Python's parser raises of brackets in brackets in ...
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


class UsageError(Exception):
    """A mistake in what the user asked for; its message is all that the user needs to see."""


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Adds the option that overrides settings of a config."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='override settings of the config, as in train_cfg.max_iters=10 '
        '"key=[a,b]" key.sub="(1,2)"',
    )


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that OpenMMLab users expect of every tool that runs a config."""
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--work-dir', help='folder of logs and results (default: work_dirs/<config name>)'
    )
    add_config_options(parser)
    parser.add_argument(
        '--launcher',
        choices=('none', 'pytorch', 'slurm', 'mpi'),
        default='none',
        help='how the processes were started (tools/dist_*.sh and slurm_*.sh set it)',
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def add_dataloader_options(parser: argparse.ArgumentParser) -> None:
    """Adds mmpretrain's options that switch off what speeds data loading up."""
    parser.add_argument(
        '--no-pin-memory', action='store_true', help='dataloaders without pinned memory'
    )
    parser.add_argument(
        '--no-persistent-workers', action='store_true',
        help='dataloaders whose processes end with every epoch',
    )  # fmt: skip


def set_dataloaders(config: Config, arguments: argparse.Namespace) -> None:
    """Sets in a config what the options of :func:`add_dataloader_options` say."""
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        for key in ('pin_memory', 'persistent_workers'):
            if getattr(arguments, f'no_{key}') and isinstance(config.get(name), dict):
                config[name][key] = False


def set_environment() -> None:
    """Sets what has to be set before torch is imported.

    Files that are read are data, see :mod:`mmscale.models.checkpoints`; processes that others
    start from ours get at least torch's own restriction. Waiting OpenMP threads sleep, or they
    starve whatever else runs on the cores.
    """
    if os.environ.get('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '').lower() not in NO:
        # Torch knows few words for yes, and takes any other for a no.
        os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    warnings.filterwarnings('ignore', message='In MMCV v1.4.4')
    warnings.filterwarnings('ignore', message='torch.meshgrid')


def one_line(error: BaseException) -> str:
    """Type and text of an error, as part of a message."""
    return f'{type(error).__name__}: {" ".join(str(error).split())}'


def _check_override_names(options: dict[str, Any], config: Config) -> None:
    """Refuses overrides of settings that nothing reads.

    Raises:
        UsageError: An override is neither of the config's own keys nor of MMEngine's.
    """
    names = {key: key.split('.')[0] for key in options}
    if all(name in config for name in names.values()):
        return
    allowed = {*config, *SETTINGS}
    for key, name in names.items():
        if name not in allowed:
            close = difflib.get_close_matches(name, sorted(allowed), n=1)
            hint = f'; did you mean {close[0]}?' if close else ''
            raise UsageError(
                f'--cfg-options {key}: neither the config nor MMEngine has a setting {name}{hint}'
            )


def check_names(path: Path, config: Iterable[str]) -> None:
    """Refuses settings that are misspelt: MMEngine would leave them out without a word.

    A config may have any variables, and only a name that is all but a setting's is refused: no
    config of mmpretrain, of mmdet or of this project has such a one.

    Raises:
        UsageError: A setting is misspelt.
    """
    for name in sorted({*config} - SETTINGS):
        close = difflib.get_close_matches(name, sorted(SETTINGS), n=1, cutoff=_MISSPELT)
        if close:
            raise UsageError(
                f'config={path}: neither MMEngine nor mmscale has a setting {name}; did you mean '
                f'{close[0]}? (A variable of your own needs a name less like it)'
            )


def _check_detection() -> None:
    """Refuses to go on without what configs of detection need.

    Raises:
        UsageError: mmdet or mmcv's compiled ops are missing.
    """
    for module, what in (('mmdet', 'MMDetection'), ('mmcv.ops', "mmcv's compiled ops")):
        try:
            with quiet_imports():
                importlib.import_module(module)
        except ImportError as error:
            raise UsageError(
                f'detection needs {what}, which cannot be imported ({one_line(error)}); install '
                'with: make detection (docs/detection.md)'
            ) from error


def load_config(arguments: argparse.Namespace) -> Config:
    """Reads the config that the common arguments name, with their overrides.

    Raises:
        UsageError: There is no such file, it does not parse, an override is malformed or of an
            unknown setting, or the config is of detection and that is not installed.
    """
    path = Path(arguments.config)
    if not path.is_file():
        raise UsageError(f'config={arguments.config} is not a file')
    from mmengine.config import Config, DictAction

    options = argparse.Namespace(cfg_options=None)
    try:
        DictAction(['--cfg-options'], 'cfg_options', nargs='+')(
            argparse.ArgumentParser(), options, arguments.cfg_options
        )
    except (AssertionError, ValueError) as error:
        reason = error if isinstance(error, AssertionError) else 'expected KEY=VALUE'
        raise UsageError(f'--cfg-options {" ".join(arguments.cfg_options)}: {reason}') from None
    for option in arguments.cfg_options:
        key, _, value = option.partition('=')
        # MMEngine would take the spaces out of a path and split it at commas.
        if os.path.isfile(value) and set(value) & set(' ,()[]'):
            options.cfg_options[key] = value
    os.environ.setdefault('LOCAL_RANK', str(arguments.local_rank))
    try:
        with quiet_imports():
            config = Config.fromfile(path)
            check_names(path, config)
            _check_override_names(options.cfg_options, config)
            config.merge_from_dict(options.cfg_options)
    except CONFIG_ERRORS as error:
        if isinstance(error, ModuleNotFoundError) and 'mmdet' in str(error):
            _check_detection()
        raise UsageError(f'config={path}: {one_line(error)}') from error
    if config.get('default_scope') == 'mmdet':
        _check_detection()
    config.launcher = arguments.launcher
    if arguments.work_dir is not None:
        config.work_dir = arguments.work_dir
    elif config.get('work_dir') is None:
        config.work_dir = str(Path('work_dirs') / path.stem)
    return config


def read_config(path: str | Path, options: Sequence[str] = ()) -> Config:
    """Reads a config that nothing is run of.

    Args:
        path: The file.
        options: Overrides, ``KEY=VALUE`` each.

    Raises:
        UsageError: See :func:`load_config`.
    """
    return load_config(
        argparse.Namespace(
            config=str(path), cfg_options=list(options), work_dir=None, launcher='none',
            local_rank=0,
        )
    )  # fmt: skip


def read_checkpoint(path: str) -> dict[str, Any]:
    """Reads a checkpoint; ``set_environment`` must have been called before torch was imported.

    Raises:
        UsageError: The file is damaged, holds code, or is not a checkpoint.
    """
    with quiet_imports():
        from mmscale.models.checkpoints import load_checkpoint

    try:
        return load_checkpoint(path)
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from error
