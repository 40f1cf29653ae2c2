"""FiniteLossHook: a training whose loss is not a number ends instead of wasting days."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import isfinite

from mmscale.arch.checks import integer
from mmscale.registry import HOOKS


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stops a training whose loss is infinite or not a number.

    Args:
        interval: Iterations between two checks, each of which waits for the device.

    Raises:
        ValueError: The interval is not a positive integer.
    """

    def __init__(self, interval: int = 50) -> None:
        self.interval = integer('interval', interval)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: dict | None = None,
    ) -> None:
        """Checks the loss.

        Raises:
            FloatingPointError: It is not finite.
        """
        loss = (outputs or {}).get('loss')
        if loss is None or not self.every_n_train_iters(runner, self.interval):
            return
        if not isfinite(loss):
            raise FloatingPointError(
                f'loss={loss.item()} at iteration {runner.iter + 1}: lower the '
                'learning rate and resume from the last checkpoint'
            )
