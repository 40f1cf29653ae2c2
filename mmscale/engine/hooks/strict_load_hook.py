"""StrictLoadHook: a checkpoint that does not fit the model is an error, never silence."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from mmscale.registry import HOOKS


@HOOKS.register_module()
class StrictLoadHook(Hook):
    """Compares every loaded checkpoint with the model before it is used.

    Raises:
        ValueError: Keys are missing or left over, or shapes differ; the message names some.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Checks a checkpoint that the runner loads."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        wanted = model.state_dict()
        found = checkpoint.get('state_dict', checkpoint)
        problems = {
            'missing': [key for key in wanted if key not in found],
            'not in the model': [key for key in found if key not in wanted],
            'of another shape': [
                f'{key} {tuple(found[key].shape)}, expected {tuple(wanted[key].shape)}'
                for key in wanted
                if key in found and found[key].shape != wanted[key].shape
            ],
        }
        lines = [
            f'{len(keys)} {what}: {", ".join(keys[:3])}{", ..." if len(keys) > 3 else ""}'
            for what, keys in problems.items()
            if keys
        ]
        if lines:
            raise ValueError(f'the checkpoint does not fit the model: {"; ".join(lines)}')
