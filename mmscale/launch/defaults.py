"""What a run gets that its config leaves out, or leaves to MMEngine."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from mmscale.config_parts import type_name
from mmscale.errors import UsageError
from mmscale.quiet import quiet_imports

if TYPE_CHECKING:
    from mmengine.config import Config


def _hooks_of(config: Config) -> dict[str, Any]:
    """The default hooks of a config, which may leave them out.

    Raises:
        UsageError: They are no hooks.
    """
    hooks = config.get('default_hooks')
    if hooks is not None and not isinstance(hooks, dict):
        raise UsageError(f'default_hooks={hooks!r:.60} must be a dict')
    return dict(hooks or {})


def _is_stock(hook: object, name: str) -> bool:
    """Whether the config of a hook is of MMEngine's own of that name, however it is written."""
    with quiet_imports():
        from mmengine import hooks

        from mmscale.registry import HOOKS
    if not isinstance(hook, dict) or type_name(hook) != name:
        return False
    kind = hook.get('type')
    try:
        return (HOOKS.get(kind) if isinstance(kind, str) else kind) is getattr(hooks, name)
    except RuntimeError:  # nobody has it, as the runner will say
        return False


def _replaced(hook: Any, name: str, ours: str) -> Any:
    """A hook, or ours in the place of MMEngine's own of that name."""
    return {**hook, 'type': ours} if _is_stock(hook, name) else hook


def _durable(hook: Any) -> Any:
    """A hook, or ours in the place of MMEngine's that saves checkpoints."""
    # Another storage than files of this machine has its own ways.
    storage = isinstance(hook, dict) and (hook.get('backend_args') or hook.get('file_client_args'))
    if storage and storage.get('backend') not in ('local', 'disk'):
        return hook
    return _replaced(hook, 'CheckpointHook', 'mmscale.DurableCheckpointHook')


def make_durable(config: Config) -> None:
    """Adds to a training what lets it survive kills, preemption and losses that are not finite.

    Raises:
        UsageError: Its hooks are no hooks.
    """
    from mmengine.hooks import CheckpointHook, Hook

    hooks = {'checkpoint': {'type': 'CheckpointHook', 'interval': 1}, **_hooks_of(config)}
    custom = config.get('custom_hooks')
    custom = custom if isinstance(custom, (list, tuple)) else []
    if any(type(hook) is CheckpointHook for hook in (*hooks.values(), *custom)):
        warnings.warn(
            'a CheckpointHook that is built already stays as it is, and writes checkpoints that a '
            'kill may cut off: give its config, or mmscale.DurableCheckpointHook',
            stacklevel=2,
        )
    for name, hook in hooks.items():
        if hook is not None and not isinstance(hook, (dict, Hook)):
            raise UsageError(f'default_hooks.{name}={hook!r:.60} must be a dict')
    hooks = {name: _durable(hook) for name, hook in hooks.items()}
    for name in ('Preemption', 'FiniteLoss'):
        hooks.setdefault(name, {'type': f'mmscale.{name}Hook'})
    # A dict that is set by default into a Config is not kept by it.
    config.default_hooks = hooks
    if custom:
        config.custom_hooks = [_durable(hook) for hook in custom]


def log_in_one_process(config: Config) -> None:
    """Lets one of several processes write the metrics that all of them have."""
    hooks = {'logger': {'type': 'LoggerHook'}, **_hooks_of(config)}
    config.default_hooks = {
        name: _replaced(hook, 'LoggerHook', 'mmscale.MainProcessLoggerHook')
        for name, hook in hooks.items()
    }


def complete_dataloaders(config: Config) -> None:
    """Gives dataloaders what mmpretrain's configs leave to mmpretrain's own tools."""
    from torch import cuda

    for phase in ('train', 'val', 'test', 'calibration'):
        loader = config.get(f'{phase}_dataloader')
        if isinstance(loader, dict):
            loader.setdefault('collate_fn', dict(type='default_collate'))
            loader.setdefault('pin_memory', cuda.is_available())
            loader.setdefault('persistent_workers', bool(loader.get('num_workers')))
