"""FiniteLossHook: a training whose loss is not a number ends instead of wasting days."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import isfinite

from mmscale.arch.checks import integer
from mmscale.registry import HOOKS


def check_loss(runner: Runner, outputs: dict | None) -> None:
    """Checks the loss of the present iteration, if it has one.

    Raises:
        FloatingPointError: It is not finite.
    """
    loss = (outputs or {}).get('loss')
    if loss is not None and not isfinite(loss):
        raise FloatingPointError(
            f'loss={loss.item()} at iteration {runner.iter + 1}: lower the '
            'learning rate and resume from the last checkpoint'
        )


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
        self, runner: Runner, *_: object, outputs: dict | None = None, **__: object
    ) -> None:
        """Checks the loss, see :func:`check_loss`."""
        if self.every_n_train_iters(runner, self.interval):
            check_loss(runner, outputs)
