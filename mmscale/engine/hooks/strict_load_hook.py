"""StrictLoadHook: a checkpoint that does not fit the model is an error, never silence."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from mmscale.models.checkpoints import misfit
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
        difference = misfit(model.state_dict(), checkpoint.get('state_dict', checkpoint))
        if difference:
            raise ValueError(f'the checkpoint does not fit the model: {difference}')
