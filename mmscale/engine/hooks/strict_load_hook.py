"""StrictLoadHook: a checkpoint that does not fit the model is an error, never silence."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmscale.engine.wrappers import unwrapped_model
from mmscale.errors import UsageError
from mmscale.models.checkpoints import misfit
from mmscale.registry import HOOKS


@HOOKS.register_module()
class StrictLoadHook(Hook):
    """Compares every loaded checkpoint with the model before it is used.

    Args:
        prefix: Only keys that begin so are compared, as ``backbone.`` where a detector may be
            given a head for other classes; all by default.

    Raises:
        ValueError: Keys are missing or left over, or shapes differ; the message names some.
    """

    def __init__(self, prefix: str = '') -> None:
        self._prefix = prefix

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Checks a checkpoint that the runner loads."""
        model = unwrapped_model(runner)
        wanted, found = (
            {key: tensor for key, tensor in state.items() if key.startswith(self._prefix)}
            for state in (model.state_dict(), checkpoint.get('state_dict', checkpoint))
        )
        if not wanted:
            raise UsageError(f'StrictLoadHook: the model has no key with prefix={self._prefix!r}')
        difference = misfit(wanted, found)
        if difference:
            raise UsageError(f'the checkpoint does not fit the model: {difference}')
