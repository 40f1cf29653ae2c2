"""What a training goes on with besides weights, compared with what it has itself.

Whatever fits the optimizer, the schedulers and the hooks of this training may have been written by
an earlier one. The rest is refused before MMEngine takes it over, which asks nothing: its
schedulers take any attribute from a file.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from pathlib import PurePosixPath
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmengine.hooks import EMAHook
from mmengine.logging import HistoryBuffer
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import IterBasedTrainLoop
from torch.optim import Optimizer

from mmscale.arch.checks import check_keys, integer, is_number
from mmscale.engine.hooks import DMSHook
from mmscale.engine.wrappers import unwrapped_model
from mmscale.errors import FOREIGN_ERRORS, UsageError, one_line
from mmscale.models.checkpoints import misfit
from mmscale.models.slice_step import state_after_step
from mmscale.shown import shortly

if TYPE_CHECKING:
    from mmengine.runner import Runner

_MOST_SEED = 2**32 - 1  # NumPy's
# Nothing depends on how many there are, as of the iterations of a training by epochs.
_MOST_ITERATIONS = 2**53
# What MMEngine's CheckpointHook goes on with; it may have one of each per metric.
_BEST = 'best_ckpt'
_BEST_SCORE = 'best_score'
_LAST = 'last_ckpt'
_KEPT = 'keep_ckpt_ids'
# What an optimizer keeps for one parameter; tensors count once.
_MOST_KEPT = 1000
# Of a scheduler that was added or taken away since.
_INITIAL = 'initial_'
# How an optimizer steps, not what; None lets it choose.
_HOW = ('foreach', 'fused', 'capturable', 'differentiable')


def check_state(runner: Runner, path: str, checkpoint: dict[str, Any]) -> None:
    """Checks all that MMEngine restores from a checkpoint besides the weights.

    Args:
        runner: The runner, with optimizers and schedulers, not yet started.
        path: The checkpoint, for messages.
        checkpoint: Its content, which has a ``meta`` and a ``message_hub``.

    Raises:
        UsageError: A part is none of a training like this one; the message names its key.
    """
    _check_meta(runner, f'{path}: meta', checkpoint['meta'])
    _check_hub(runner, f'{path}: message_hub', checkpoint['message_hub'])
    for hook in runner.hooks:
        if isinstance(hook, DMSHook):
            hook.separate(runner)
        if isinstance(hook, EMAHook) and 'ema_state_dict' in checkpoint:
            _check_average(runner, f'{path}: ema_state_dict', checkpoint, hook)
    groups = {}
    for part, wrapper, found in _parts(runner, f'{path}: optimizer', checkpoint.get('optimizer')):
        groups[part] = _check_wrapper(f'{path}: optimizer{part}', wrapper, found)
    schedulers = checkpoint.get('param_schedulers')
    if schedulers is not None and runner.param_schedulers is not None:
        _check_schedulers(runner, f'{path}: param_schedulers', schedulers, groups)
    for key, own in (
        ('optimizer', runner.optim_wrapper),
        ('param_schedulers', runner.param_schedulers),
    ):
        if own and checkpoint.get(key) is None:
            runner.logger.warning('%s has no %s, whose state begins anew', path, key)


def check_structure_optimizer(runner: Runner, path: str, checkpoint: Mapping[str, Any]) -> None:
    """Checks the state of the optimizer of a structure, which a differentiable search has.

    Raises:
        UsageError: It is of another optimizer.
    """
    optimizer = getattr(unwrapped_model(runner), 'structure_optimizer', None)
    if 'structure_optimizer' in checkpoint and isinstance(optimizer, Optimizer):
        name = f'{path}: structure_optimizer'
        _check_optimizer(name, optimizer, checkpoint['structure_optimizer'])


# ---------------------------------------------------------------------- plain values


def _text_keys(name: str, value: object) -> dict[str, Any]:
    """The value, which is a dict whose keys are texts."""
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise UsageError(f'{name}={shortly(value)} must be a dict with texts as keys')
    return value


def _refuse(name: str, value: object, allowed: str) -> None:
    raise UsageError(f'{name}={shortly(value)} must be {allowed}')


def _check_like(name: str, value: object, own: object) -> None:
    """Checks that a value could stand where this training has its own.

    Texts must be equal; numbers may be any that are finite, and not negative where its own is
    positive; of tensors the shape counts. What no checkpoint can hold, as functions, is not
    compared.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(own, bool):
        if not isinstance(value, bool):
            _refuse(name, value, 'true or false')
    elif isinstance(own, (int, float)):
        # Some begin as infinite, as the best score so far.
        if not is_number(value) and not (isinstance(value, float) and value == own):
            _refuse(name, value, 'a finite number')
        if value < 0 < own:
            _refuse(name, value, 'a number of 0 or more')
    elif isinstance(own, str):
        if not isinstance(value, str) or value != own:
            _refuse(name, value, f'{own!r}, as in this training')
    elif own is None:
        if not (value is None or isinstance(value, bool) or is_number(value)):
            _refuse(name, value, 'a finite number, true, false or None')
    elif isinstance(own, torch.Tensor):
        _check_tensor(name, value, own)
    elif isinstance(own, (list, tuple)):
        if not isinstance(value, (list, tuple)) or len(value) != len(own):
            _refuse(name, value, f'a list of {len(own)}, as in this training')
        for index, (one, known) in enumerate(zip(value, own, strict=True)):
            _check_like(f'{name}[{index}]', one, known)
    elif isinstance(own, dict):
        _check_like_dict(name, value, own)


def _check_like_dict(name: str, value: object, own: dict) -> None:
    if not isinstance(value, dict):
        _refuse(name, value, 'a dict')
    if all(isinstance(key, str) for key in own):
        plain = {
            key: known
            for key, known in own.items()
            if known is None or isinstance(known, (bool, int, float, str, tuple, list, dict))
        }
        check_keys(name, value, own, plain)
        for key in value:
            _check_like(f'{name}.{key}', value[key], own[key])
    elif not all(is_number(one) for item in value.items() for one in item):
        # As the milestones of a scheduler, and how often each is one.
        _refuse(name, value, 'a dict of finite numbers')


def _check_tensor(name: str, value: object, own: torch.Tensor) -> None:
    if not isinstance(value, torch.Tensor) or value.shape != own.shape:
        _refuse(name, value, f'a Tensor of shape {tuple(own.shape)}')
    if value.is_floating_point() != own.is_floating_point() or value.is_complex():
        _refuse(f'{name}.dtype', value.dtype, f'like {own.dtype}')
    if own.isfinite().all() and not value.isfinite().all():
        raise UsageError(f'{name} has numbers that are not finite')
    if not own.dim() and value < 0 < own:
        _refuse(name, value.item(), 'a number of 0 or more')


# ---------------------------------------------------------------------- counters, logs, averages


def _check_meta(runner: Runner, name: str, meta: dict[str, Any]) -> None:
    """Checks what a run has come to, and its seed."""
    loop = runner.train_loop
    by_iterations = isinstance(loop, IterBasedTrainLoop)
    most_iter = loop.max_iters if by_iterations else _MOST_ITERATIONS
    most_epoch = _MOST_ITERATIONS if by_iterations else loop.max_epochs
    integer(f'{name}.iter', meta.get('iter'), 0, most_iter)
    integer(f'{name}.epoch', meta.get('epoch'), 0, most_epoch)
    if meta.get('seed') is not None:
        integer(f'{name}.seed', meta['seed'], 0, _MOST_SEED)
    try:
        # As MMEngine compares it.
        pickle.dumps(meta.get('dataset_meta'))
    except FOREIGN_ERRORS as error:
        raise UsageError(f'{name}.dataset_meta: {one_line(error):.200}') from error


def _check_hub(runner: Runner, name: str, found: object) -> None:
    """Checks MMEngine's message hub: curves, and what hooks have noted."""
    check_keys(name, found, None, ('log_scalars', 'runtime_info', 'resumed_keys'))
    curves, notes, resumed = (
        _text_keys(f'{name}.{key}', found[key])
        for key in ('log_scalars', 'runtime_info', 'resumed_keys')
    )
    for key, curve in curves.items():
        _check_curve(f'{name}.log_scalars.{key:.80}', curve)
    hub = runner.message_hub
    for key, value in resumed.items():
        own = True if key in curves or key in notes else hub._resumed_keys.get(key)
        if not isinstance(value, bool) or own not in (None, value):
            _refuse(f'{name}.resumed_keys.{key:.80}', value, str(own or False))
    for key, value in notes.items():
        _check_note(f'{name}.runtime_info.{key:.80}', key, value)


def _check_curve(name: str, curve: object) -> None:
    if not isinstance(curve, HistoryBuffer):
        _refuse(name, curve, 'a HistoryBuffer')
    logs, counts = curve.data
    if len(logs) != len(counts) or not len(logs):
        _refuse(name, (len(logs), len(counts)), 'as many values as counts, one or more')
    for what, values in (('values', logs), ('counts', counts)):
        if values.dtype.kind not in 'iuf':
            _refuse(f'{name}.{what}.dtype', str(values.dtype), 'a real number')
    integer(f'{name}.max_length', curve.max_length)


def _check_note(name: str, key: str, value: object) -> None:
    """Checks what MMEngine's CheckpointHook finds files by, some of which it removes."""
    if key.startswith(_BEST_SCORE):
        # As metrics give it.
        is_tensor = isinstance(value, torch.Tensor) and value.numel() == 1
        number = value.item() if is_tensor or isinstance(value, np.generic) else value
        if not isinstance(number, float) and not is_number(number):
            _refuse(name, value, 'a number')
    elif key.startswith(_BEST) or key == _LAST:
        start = 'best_' if key.startswith(_BEST) else ''
        if not isinstance(value, str) or not PurePosixPath(value).name.startswith(start):
            _refuse(name, value, f'the path of a checkpoint {start}*')
    elif key == _KEPT:
        if not isinstance(value, list):
            _refuse(name, value, 'a list of numbers of checkpoints')
        for index, one in enumerate(value):
            integer(f'{name}[{index}]', one, 0, _MOST_ITERATIONS)


def _check_average(
    runner: Runner, name: str, checkpoint: Mapping[str, Any], hook: EMAHook
) -> None:
    """Checks averaged weights, which MMEngine swaps with the others by their names."""
    found = _text_keys(name, checkpoint['ema_state_dict'])
    for key, value in found.items():
        if not isinstance(value, torch.Tensor):
            _refuse(f'{name}.{key:.80}', value, 'a Tensor')
    weights = {
        key.removeprefix('module.'): tensor
        for key, tensor in found.items()
        if key.startswith('module.')
    }
    own = unwrapped_model(runner).state_dict()
    if not hook.strict_load:
        own = {key: tensor for key, tensor in own.items() if key in weights}
    difference = misfit(own, weights)
    strange = [key for key in weights if key not in checkpoint['state_dict']]
    if difference or strange:
        raise UsageError(f'{name} does not fit the model: {difference or strange[0]:.300}')
    if 'steps' not in found or found['steps'].numel() != 1:
        _refuse(f'{name}.steps', found.get('steps'), 'one number')


# ---------------------------------------------------------------------- optimizers


def _parts(runner: Runner, name: str, found: object) -> list[tuple[str, OptimWrapper, object]]:
    """Each optimizer of a training, with what a file has of it; the only one has no name."""
    wrapper = runner.optim_wrapper
    if found is None:
        return []
    if isinstance(wrapper, OptimWrapperDict):
        own = wrapper.optim_wrappers
        states = check_keys(name, found, (), own)
        return [(f'.{key}', own[key], states[key]) for key in own]
    return [('', wrapper, found)] if isinstance(wrapper, OptimWrapper) else []


def _check_wrapper(name: str, wrapper: OptimWrapper, found: object) -> list[dict[str, Any]]:
    """Checks the state of an optimizer and of MMEngine's wrapper around it.

    Returns:
        The groups of parameters as they will be, and behind them the wrapper's own settings.
    """
    groups = _check_optimizer(name, wrapper.optimizer, found)
    scaler = wrapper.state_dict().get('loss_scaler')
    if 'loss_scaler' in found and scaler:
        _check_like(f'{name}.loss_scaler', found['loss_scaler'], scaler)
    base = wrapper.base_param_settings
    if 'base_param_settings' in found and base is not None:
        where = f'{name}.base_param_settings'
        _check_group(where, found['base_param_settings'], base)
        _check_like(f'{where}.params', found['base_param_settings']['params'], base['params'])
        base = found['base_param_settings']
    return groups if base is None else [*groups, dict(base)]


def _check_group(name: str, group: object, own: Mapping[str, Any]) -> None:
    """Checks the settings of parameters."""
    _check_settings(name, _text_keys(name, group), own)
    for key, value in group.items():
        if key.startswith(_INITIAL):
            _check_like(f'{name}.{key}', value, own.get(key, own.get(key.removeprefix(_INITIAL))))
        elif key in _HOW and value is None:
            continue
        elif key in own and key not in ('params', 'param_names'):
            _check_like(f'{name}.{key}', value, own[key])


def _check_settings(name: str, group: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Checks that none of the settings of parameters is missing."""
    check_keys(name, group, None, [key for key in own if not key.startswith(_INITIAL)])


def _check_identifiers(name: str, groups: object, own: list[dict[str, Any]]) -> set[int]:
    """Checks which parameters belong to which group of a file; returns their numbers."""
    if not isinstance(groups, list) or len(groups) != len(own):
        _refuse(name, groups, f'a list of {len(own)}, as in this training')
    numbers: list[int] = []
    for index, (group, known) in enumerate(zip(groups, own, strict=True)):
        found = _text_keys(f'{name}[{index}]', group).get('params')
        count = len(known['params'])
        is_list = isinstance(found, list) and all(type(one) is int for one in found)
        if not is_list or len(found) != count:
            shown = len(found) if is_list else found
            what = f'the numbers of {count} parameters, as in this training'
            _refuse(f'{name}[{index}].params', shown, what)
        numbers += found
    if len(set(numbers)) < len(numbers):
        raise UsageError(f'{name}: a parameter comes twice in params')
    return set(numbers)


def _check_optimizer(name: str, optimizer: Optimizer, found: object) -> list[dict[str, Any]]:
    """Checks the state of an optimizer; returns its groups of parameters as they will be."""
    check_keys(name, found, None, ('state', 'param_groups'))
    own = optimizer.state_dict()
    groups, state = found['param_groups'], found['state']
    numbers = _check_identifiers(f'{name}.param_groups', groups, own['param_groups'])
    if not isinstance(state, dict):
        _refuse(f'{name}.state', state, 'a dict')
    for key, kept in state.items():
        where = f'{name}.state[{shortly(key)}]'
        if key not in own['state'] and (type(key) is not int or key not in numbers):
            raise UsageError(f'{where} is of no parameter')
        if type(key) is int:
            _check_storages(where, _text_keys(where, kept))
    if type(optimizer).load_state_dict is not Optimizer.load_state_dict:
        return groups  # as those that share their state between processes
    # A copy takes it over, which knows what older versions of an optimizer did not have.
    taker = copy.copy(optimizer)
    try:
        taker.load_state_dict({'state': state, 'param_groups': groups})
    except FOREIGN_ERRORS as error:
        # Of another kind of optimizer, as a rule.
        for index, (group, known) in enumerate(zip(groups, optimizer.param_groups, strict=True)):
            _check_settings(f'{name}.param_groups[{index}]', group, known)
        raise UsageError(f'{name}: {one_line(error):.300}') from error
    for index, (group, known) in enumerate(
        zip(taker.param_groups, optimizer.param_groups, strict=True)
    ):
        where = f'{name}.param_groups[{index}]'
        _check_group(where, group, known)
        _check_kept(where, taker, index, optimizer, groups[index]['params'])
    return taker.param_groups


def _check_storages(name: str, kept: Mapping[str, Any]) -> None:
    """Checks that nothing stands for more numbers than it has: a copy would have room for all."""
    values = list(kept.values())
    for value in values:
        if len(values) > _MOST_KEPT:
            raise UsageError(f'{name} has more than {_MOST_KEPT:,} values')
        if isinstance(value, (str, bytes)):
            raise UsageError(f'{name} has a text, {shortly(value)}, in the place of numbers')
        if isinstance(value, torch.Tensor) and (
            value.is_sparse
            or value.numel() * value.element_size() > value.untyped_storage().nbytes()
        ):
            raise UsageError(f'{name} has a {shortly(value)} that is not stored whole')
        if isinstance(value, (dict, list, tuple)):
            values += value.values() if isinstance(value, dict) else value


def _check_kept(
    name: str, taker: Optimizer, index: int, optimizer: Optimizer, numbers: list[int]
) -> None:
    """Checks what is kept for each parameter of a group, as momentum.

    What that has to be is what such an optimizer keeps after a step with these settings.
    """
    known: dict[tuple, dict[str, Any] | None] = {}
    for number, parameter in zip(numbers, taker.param_groups[index]['params'], strict=True):
        kind = (parameter.shape, parameter.dtype, parameter.device)
        if kind not in known:
            known[kind] = _after_a_step(name, taker, index, optimizer, parameter)
        kept, own = taker.state.get(parameter), known[kind]
        if not kept or own is None:
            continue
        where = f'{name.partition(".param_groups")[0]}.state[{number}]'
        check_keys(where, kept, None, own)
        for key, value in own.items():
            _check_like(f'{where}.{key}', kept[key], value)


def _after_a_step(
    name: str, taker: Optimizer, index: int, optimizer: Optimizer, parameter: torch.Tensor
) -> dict[str, Any] | None:
    """What an optimizer keeps of a parameter after a step without gradient.

    Returns:
        None if it cannot be told, as where steps need something else.
    """
    try:
        return state_after_step(taker, taker.param_groups[index], torch.zeros_like(parameter))
    except FOREIGN_ERRORS as error:
        try:
            state_after_step(
                optimizer,
                optimizer.param_groups[index],
                torch.zeros_like(parameter),
            )
        except FOREIGN_ERRORS:
            return None
        raise UsageError(f'{name} allows no step: {one_line(error):.200}') from error


# ---------------------------------------------------------------------- schedulers


def _check_schedulers(
    runner: Runner, name: str, found: object, groups: Mapping[str, list[dict[str, Any]]]
) -> None:
    """Checks the state of the schedulers, each of which would take any attribute."""
    own = runner.param_schedulers
    if isinstance(own, dict):
        by_name = check_keys(name, found, (), own)
        lists = [(f'.{key}', by_name[key], own[key]) for key in own]
    else:
        lists = [('', found, own)]
    for part, states, schedulers in lists:
        where = f'{name}{part}'
        if not isinstance(states, list) or len(states) != len(schedulers):
            _refuse(where, states, f'a list of {len(schedulers)}, as in this training')
        for index, (state, scheduler) in enumerate(zip(states, schedulers, strict=True)):
            here = f'{where}[{index}]'
            _check_like(here, state, scheduler.state_dict())
            known = scheduler.optimizer.param_groups
            try:
                _try_scheduler(scheduler, state, groups.get(part, known))
            except FOREIGN_ERRORS as error:
                try:
                    _try_scheduler(scheduler, scheduler.state_dict(), known)
                except FOREIGN_ERRORS:
                    continue  # It needs something else, as a metric.
                raise UsageError(f'{here} allows no step: {one_line(error):.200}') from error


def _try_scheduler(scheduler: Any, state: dict[str, Any], groups: list[dict[str, Any]]) -> None:
    """Lets a copy of a scheduler go one step further."""
    copied = copy.copy(scheduler)
    copied.load_state_dict({**state, 'verbose': False})
    copied.optimizer = SimpleNamespace(
        param_groups=[dict(group) for group in groups], step=scheduler.optimizer.step
    )
    copied.optimizer._global_step = 0
    copied.step()
    for index, value in enumerate(copied.get_last_value()):
        _check_like(f'its value {index}', value, -1.0)
