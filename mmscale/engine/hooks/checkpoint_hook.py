"""DurableCheckpointHook: whatever kills a training, a whole checkpoint is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_world_size, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from mmscale.engine.wrappers import unwrapped_model
from mmscale.errors import UsageError
from mmscale.files import atomic_write
from mmscale.registry import HOOKS


@register_backend('atomic')
class AtomicBackend(LocalBackend):
    """Writes files of this machine in one step: a file is the old one or the whole new one.

    The content goes to a temporary file beside it, is synced to the disk, and takes the file's
    name. What a kill leaves is the hidden temporary file, which the next attempt overwrites.
    """

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Writes a file.

        Raises:
            OSError: The disk is full or the folder cannot be written; the old file is unchanged.
        """
        with atomic_write(filepath) as file:
            file.write(obj)


class _LateRemoval(AtomicBackend):
    """Removes files when it is told to, not at once."""

    def __init__(self) -> None:
        self._doomed: list[Path] = []

    def remove(self, filepath: str | Path) -> None:
        """Notes a file to be removed."""
        self._doomed.append(Path(filepath))

    def remove_now(self) -> None:
        """Removes the files that were noted."""
        for path in self._doomed:
            path.unlink(missing_ok=True)
        self._doomed = []


@HOOKS.register_module()
class DurableCheckpointHook(CheckpointHook):
    """MMEngine's CheckpointHook on local file systems, safe against kills and full disks.

    Checkpoints and ``last_checkpoint`` are written atomically, and an old checkpoint (the last N,
    the best one) is removed once the new one is whole: MMEngine's removes it before. Weights that
    are not numbers are not written. A checkpoint says how many processes trained it
    (``meta.world_size``).

    Args:
        **settings: As for MMEngine's ``CheckpointHook``, but for ``backend_args``.

    Raises:
        ValueError: ``backend_args`` or ``file_client_args`` is given.
    """

    def __init__(self, **settings: Any) -> None:
        for key in ('backend_args', 'file_client_args'):
            if settings.get(key) is not None:
                raise UsageError(
                    f'DurableCheckpointHook: {key}={settings[key]!r:.60} is not allowed; to write '
                    'to another storage take the CheckpointHook of MMEngine'
                )
        super().__init__(**settings, backend_args=dict(backend='atomic'))

    def before_train(self, runner: Runner) -> None:
        """Prepares the folder, and takes over the removal of old checkpoints."""
        super().before_train(runner)
        self.file_backend = _LateRemoval()
        # A checkpoint that is resumed names the best one, which is removed when there is a better
        # one. Only this folder's is ours; its path changes when the folder is moved.
        self.best_ckpt_path = self._own_best(getattr(self, 'best_ckpt_path', None))
        for key, path in getattr(self, 'best_ckpt_path_dict', {}).items():
            self.best_ckpt_path_dict[key] = self._own_best(path)
        count = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        if not self.by_epoch and self.interval % count:
            runner.logger.warning(
                'CheckpointHook: interval=%d is no multiple of accumulative_counts=%d: gradients '
                'between two steps of the optimizer are in no checkpoint',
                self.interval,
                count,
            )

    def _own_best(self, path: object) -> str | None:
        """The best checkpoint of that name in the folder of checkpoints."""
        name = Path(path).name if isinstance(path, str) else ''
        return str(Path(self.out_dir) / name) if name.startswith('best_') else None

    def _check_weights(self, runner: Runner) -> None:
        model = unwrapped_model(runner)
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise FloatingPointError(
                    f'{name} is not finite at iteration {runner.iter + 1}: no checkpoint is '
                    'written; lower the learning rate and resume from the last checkpoint'
                )

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        """Writes the checkpoint of a step and `last_checkpoint`, then removes the outdated one."""
        self._check_weights(runner)
        outdated = None
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated = self.filename_tmpl.format(self.keep_ckpt_ids[0])
            # A full deque drops its oldest.
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        name = self.filename_tmpl.format(step)
        self.last_ckpt = str(Path(self.out_dir) / name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta={**meta, 'world_size': get_world_size()},
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            last = Path(runner.work_dir) / 'last_checkpoint'
            self.file_backend.put(self.last_ckpt.encode(), last)
            if outdated is not None:
                self.file_backend.remove(Path(self.out_dir) / outdated)
            self.file_backend.remove_now()

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        super()._save_best_checkpoint(runner, metrics)
        self.file_backend.remove_now()
