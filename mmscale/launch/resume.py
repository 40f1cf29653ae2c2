"""Checkpoints that a run starts from: checked, and chosen among those there are."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmscale.errors import FOREIGN_ERRORS, UsageError
from mmscale.launch.command_line import read_checkpoint
from mmscale.launch.config_text import read_config_text
from mmscale.settings import differences, flat
from mmscale.shown import shortly
from mmscale.untrusted import UntrustedFileError, read_bytes

if TYPE_CHECKING:
    from mmengine.runner import Runner

# What a training must not change on the way, but for the handling of its images.
_KEPT = ('model', 'data_preprocessor', 'train_dataloader', 'optim_wrapper', 'randomness')
_MOST_SHOWN = 5
# Of a path, and more than file systems allow.
_MOST_PATH_BYTES = 2**16


def check_checkpoint(runner: Runner, path: str, resume: bool) -> dict[str, Any]:
    """Reads the checkpoint that a run starts from, as the run will.

    Args:
        runner: The runner, not yet started; one that resumes has its optimizer and schedulers.
        path: The checkpoint.
        resume: Whether a training goes on from it.

    Raises:
        UsageError: The file is damaged, holds code, or does not fit the model; what it has besides
            weights is of no training like this one; or it is of a super-supernet that was not
            trained at the resolutions that are to be searched.
    """
    from mmscale.engine.hooks import FittingLoadHook, StrictLoadHook
    from mmscale.launch.resume_state import check_state, check_structure_optimizer

    checkpoint = read_checkpoint(path)
    if resume:
        _check_meta(path, checkpoint)
    for hook in runner.hooks:
        if isinstance(hook, (FittingLoadHook, StrictLoadHook)):
            try:
                hook.after_load_checkpoint(runner, checkpoint)
            except ValueError as error:
                raise UsageError(f'{path}: {error}') from error
    check_structure_optimizer(runner, path, checkpoint)
    if resume:
        check_state(runner, path, checkpoint)
    elif runner.cfg.get('test_cfg') is not None:
        _check_resolutions(runner, path, checkpoint)
    return checkpoint


def _check_resolutions(runner: Runner, path: str, checkpoint: dict[str, Any]) -> None:
    """Checks that what a search asks a super-supernet for was trained."""
    from mmscale.arch import SearchSpace
    from mmscale.engine.space_settings import space_of
    from mmscale.engine.wrappers import unwrapped_model
    from mmscale.models import SuperNetTraining

    model = unwrapped_model(runner)
    if not isinstance(model, SuperNetTraining):
        return
    try:
        config = read_config_text(checkpoint['meta']['cfg'])
        trained = SearchSpace.from_config(space_of(config)).resolutions
    except FOREIGN_ERRORS:
        return  # Not a training of ours: nothing to compare.
    never = sorted({*model.backbone.space.resolutions} - {*trained})
    if never:
        raise UsageError(
            f'{path}: model.backbone.space has resolutions of {", ".join(map(str, never))} px, at '
            f'which this super-supernet was never trained (only at '
            f'{", ".join(map(str, trained))} px): search among these, or train it with this space'
        )


def _check_meta(path: str, checkpoint: dict[str, Any]) -> None:
    """Checks that there is what MMEngine needs to resume."""
    meta = checkpoint.get('meta')
    if not isinstance(meta, dict):
        raise UsageError(f'{path} has no meta: it is of no training that could be resumed')
    if not isinstance(meta.get('cfg', ''), str):
        raise UsageError(f'{path}: meta.cfg={shortly(meta["cfg"])} must be the text of a config')
    if 'config' in meta:
        # MMEngine would execute it. Its checkpoints have had meta.cfg instead for years.
        raise UsageError(f'{path}: meta.config is not allowed: it would be executed as Python')
    missing = [key for key in ('state_dict', 'message_hub') if key not in checkpoint]
    if missing:
        raise UsageError(f'{path} has no {", ".join(missing)}: no training can be resumed from it')


def _numbered(folder: Path) -> list[Path]:
    """The checkpoints of a training in a folder, the highest number first."""
    numbers = {
        path: int(name.group(2))
        for path in folder.glob('*.pth')
        if (name := re.fullmatch(r'(iter|epoch)_(\d+)\.pth', path.name))
    }
    return sorted(numbers, key=numbers.__getitem__, reverse=True)


def last_checkpoint(folder: Path) -> Path | None:
    """What ``last_checkpoint`` in a work dir names, if it is there and names something."""
    try:
        text = read_bytes(folder / 'last_checkpoint', _MOST_PATH_BYTES)
    except (FileNotFoundError, UntrustedFileError):
        return None
    return Path(text.decode(errors='replace').strip())


def find_checkpoints(work_dir: str | Path) -> list[Path]:
    """The checkpoints of a work dir to resume from: the last one first, then older ones.

    The last one is what ``last_checkpoint`` names. If that file is missing, or what it names is
    gone, it is the one with the highest number.
    """
    folder = Path(work_dir)
    named = last_checkpoint(folder)
    if named is not None:
        # The folder may have been moved since.
        for last in (folder / named.name, named):
            if os.path.isfile(last):
                found = _numbered(last.parent)
                # Before it may come checkpoints of an earlier run that went further.
                return found[found.index(last) :] if last in found else [last]
    return _numbered(folder)


def choose_checkpoint(runner: Runner) -> str | None:
    """The newest checkpoint of the work dir that can be read; says which ones cannot.

    Returns:
        Its path; None if the work dir has none.

    Raises:
        UsageError: There are some and none can be read, the config is not theirs, or the
            processes see different ones.
    """
    from mmengine.dist import all_gather_object

    chosen = _newest_readable(runner)
    seen = all_gather_object(chosen)
    if len(set(seen)) > 1:
        raise UsageError(
            f'work_dir={runner.work_dir}: the processes see different checkpoints '
            f'({", ".join(map(str, seen))}); it must lie on a file system that all machines share'
        )
    return chosen


def _newest_readable(runner: Runner) -> str | None:
    problems = []
    for path in find_checkpoints(runner.work_dir):
        try:
            checkpoint = check_checkpoint(runner, str(path), runner._resume)
        except UsageError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            runner.logger.warning('%s; resuming from the one before: %s', problem, path)
        _check_same_run(runner, path, checkpoint.get('meta', {}))
        return str(path)
    if problems:
        raise UsageError('; '.join(problems))
    return None


def _compared(config: dict[str, Any]) -> dict[str, Any]:
    """What of a config a training must not change on the way, by dotted key."""
    from mmscale.engine.images import HANDLING

    kept = flat({key: config.get(key) for key in _KEPT})
    return {
        key: value
        for key, value in kept.items()
        if value not in (None, {}, [], ()) and not HANDLING & set(key.split('.'))
    }


def _check_same_run(runner: Runner, path: Path, meta: dict[str, Any]) -> None:
    """Checks that a run is the one that wrote a checkpoint.

    Raises:
        UsageError: Config or number of processes differ.
    """
    from mmengine.dist import get_world_size

    try:
        old = read_config_text(meta.get('cfg', ''))
        new = read_config_text(runner.cfg.pretty_text)
    except FOREIGN_ERRORS:
        return  # Not a config of MMEngine's: nothing to compare.
    found = differences(_compared(old), _compared(new), 'before') if old else []
    processes = meta.get('world_size', get_world_size())
    if type(processes) is not int or processes != get_world_size():
        found.insert(0, f'processes: {shortly(processes):.20} before, {get_world_size()} now')
    if found:
        shown = '; '.join(found[:_MOST_SHOWN])
        more = len(found) - _MOST_SHOWN
        raise UsageError(
            f'{path} is of another run ({shown}{f"; and {more} more" if more > 0 else ""}): '
            f'restore the settings, take another work dir, or accept the difference with '
            f'--resume {path}'
        )
