"""What a user asks for: the command lines, configs and checkpoints of all tools, checked."""

from __future__ import annotations

import argparse
import copy
import difflib
import importlib
import io
import json
import os
import re
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mmscale.errors import FOREIGN_ERRORS, UsageError, one_line
from mmscale.launch.old_names import now_called
from mmscale.quiet import quiet_imports
from mmscale.shown import visible, visible_lines
from mmscale.tables import Printed
from mmscale.untrusted import NO

if TYPE_CHECKING:
    from mmengine.config import Config


# What is read from a config: the arguments of MMEngine's Runner, which takes a second to import,
# what it looks up besides, and the images of training that a search calibrates with.
SETTINGS = frozenset((
    'auto_scale_lr', 'calibration_dataloader', 'custom_hooks', 'data_preprocessor',
    'default_hooks', 'default_scope', 'env_cfg', 'experiment_name', 'launcher', 'load_from',
    'log_level', 'log_processor', 'model', 'optim_wrapper', 'param_scheduler', 'randomness',
    'resume', 'test_cfg', 'test_dataloader', 'test_evaluator', 'train_cfg', 'train_dataloader',
    'val_cfg', 'val_dataloader', 'val_evaluator', 'visualizer', 'work_dir',
    'activation_checkpointing', 'compile', 'efficient_conv_bn_eval',
    'find_unused_parameters', 'model_wrapper_cfg', 'runner_type', 'sync_bn',
))  # fmt: skip

_format_warning = warnings.formatwarning

# Control characters, marks of direction, and what Python makes of bytes that are not UTF-8.
_ACTING = re.compile('[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]')

# How alike (difflib's ratio) a name of a config must be to a setting's to be a misspelling of it.
_MISSPELT = 0.88


class ToolParser(argparse.ArgumentParser):
    """A parser whose errors are safe to print: they quote arguments, as names of files."""

    def error(self, message: str) -> NoReturn:
        """Prints the usage and an error, and leaves with exit code 2."""
        super().error(visible(message))


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


def add_common_arguments(parser: argparse.ArgumentParser, needs_config: bool = True) -> None:
    """Adds the arguments that OpenMMLab users expect of every tool that runs a config.

    Args:
        parser: The parser.
        needs_config: Whether there must be a config.
    """
    parser.add_argument('config', nargs=None if needs_config else '?', help='config file')
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


def show(outcome: Printed, as_json: bool = False) -> None:
    """Prints an outcome as its tables, or as JSON, on the standard output."""
    from rich.console import Console

    if as_json:
        Console(soft_wrap=True).out(json.dumps(outcome.to_json(), indent=1), highlight=False)
    else:
        Console().print(outcome, highlight=False, soft_wrap=True)


def _visible_warning(*about: Any) -> str:
    """The text of a warning, which may quote a file that others made."""
    return visible_lines(_format_warning(*about))


def set_environment() -> None:
    """Sets what has to be set before torch and OpenCV are imported, or anything is printed.

    Files that are read are data, see :mod:`mmscale.models.checkpoints`; processes that others
    start from ours get at least torch's own restriction. Waiting OpenMP threads sleep, or they
    starve whatever else runs on the cores. A few bytes may claim to be an image of any size:
    OpenCV's own limit is 3 GB, ours 400 MB.
    """
    if os.environ.get('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '').lower() not in NO:
        # Torch knows few words for yes, and takes any other for a no.
        os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    os.environ.setdefault('OPENCV_IO_MAX_IMAGE_PIXELS', str(2**27))
    # What is printed may quote a path or a file in letters that the locale does not have.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='backslashreplace')
    warnings.formatwarning = _visible_warning
    warnings.filterwarnings('ignore', message='In MMCV v1.4.4')
    warnings.filterwarnings('ignore', message='torch.meshgrid')


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
    """Reads the config that the common arguments name, see :func:`read_config`."""
    os.environ.setdefault('LOCAL_RANK', str(arguments.local_rank))
    return read_config(
        arguments.config, arguments.cfg_options, arguments.work_dir, arguments.launcher
    )


def _overrides(options: Sequence[str]) -> dict[str, Any]:
    """The settings that ``--cfg-options`` name, as MMEngine reads them.

    Raises:
        UsageError: One is malformed.
    """
    from mmengine.config import DictAction

    read = argparse.Namespace(cfg_options=None)
    try:
        DictAction(['--cfg-options'], 'cfg_options', nargs='+')(
            argparse.ArgumentParser(), read, options
        )
    except (AssertionError, RecursionError, ValueError) as error:
        reason = error if isinstance(error, AssertionError) else 'expected KEY=VALUE'
        raise UsageError(f'--cfg-options {" ".join(options)}: {reason}') from None
    for option in options:
        key, _, value = option.partition('=')
        # MMEngine would take quotes and spaces out of a path and split it at commas.
        if os.path.exists(value) and set(value) & set(' ,()[]\'"'):
            read.cfg_options[key] = value
    return read.cfg_options


def _look_at(part: object) -> None:
    """Looks at all parts of a config: pure-Python ones import what they name when it is first."""
    if isinstance(part, (dict, list, tuple)):
        for value in part.values() if isinstance(part, dict) else part:
            _look_at(value)


def read_config(
    source: str | Path | Config,
    options: Sequence[str] = (),
    work_dir: str | Path | None = None,
    launcher: str = 'none',
) -> Config:
    """Reads a config, in either of MMEngine's styles, and completes it.

    Args:
        source: The file, or a config that was read already, which is left as it is.
        options: Overrides, ``KEY=VALUE`` each.
        work_dir: Folder of logs and results; by default the config's own, or
            ``work_dirs/<config name>``.
        launcher: How the processes were started.

    Raises:
        UsageError: There is no such file, it does not parse, an override is malformed or of an
            unknown setting, or the config is of detection and that is not installed.
    """
    is_file = isinstance(source, (str, Path))
    if not is_file and not hasattr(source, 'merge_from_dict'):
        raise UsageError(f'config={source!r:.60} must be a file or a Config')
    if is_file and not Path(source).is_file():
        raise UsageError(f'config={source} is not a file{now_called(Path(source))}')
    from mmengine.config import Config

    path = Path(source if is_file else source.filename or 'config.py')
    overrides = _overrides(options)
    try:
        with quiet_imports():
            config = Config.fromfile(path) if is_file else copy.deepcopy(source)
            check_names(path, config)
            _check_override_names(overrides, config)
            config.merge_from_dict(overrides)
            _look_at(config._cfg_dict)
    except FOREIGN_ERRORS as error:
        if isinstance(error, ModuleNotFoundError) and 'mmdet' in str(error):
            _check_detection()
        # A base of this config may be one of ours by its old name.
        missing = error.filename if isinstance(error, FileNotFoundError) else None
        now = '' if missing is None else now_called(missing)
        if isinstance(error, SyntaxError) and set('\'"\n') & set(os.path.abspath(path.parent)):
            now = (
                '; MMEngine pastes the path of the folder for {{ fileDirname }} into the text, as '
                'it is: put that in three double quotes'
            )
        raise UsageError(f'config={path}: {one_line(error)}{now}') from error
    if config.get('default_scope') == 'mmdet':
        _check_detection()
    config.launcher = launcher
    if work_dir is not None:
        config.work_dir = str(work_dir)
    elif config.get('work_dir') is None:
        config.work_dir = str(Path('work_dirs') / path.stem)
    return config


def read_checkpoint(path: str) -> dict[str, Any]:
    """Reads a checkpoint; ``set_environment`` must have been called before torch was imported.

    Raises:
        UsageError: The file is damaged, holds code, or is not a checkpoint; or MMEngine could not
            print its name without acting on the terminal.
        FileNotFoundError: There is no such file.
    """
    if _ACTING.search(str(path)):
        raise UsageError(f'{path}: rename it: its path has control characters or is not UTF-8')
    with quiet_imports():
        from mmscale.models.checkpoints import load_checkpoint

    return load_checkpoint(path)
