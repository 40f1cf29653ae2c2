"""PreemptionHook: a training that is told to end writes a checkpoint and ends."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

import torch
from mmengine.dist import barrier
from mmengine.hooks import CheckpointHook, Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import distributed

from mmscale.arch.checks import integer
from mmscale.registry import HOOKS

_SIGNALS = (signal.SIGUSR1, signal.SIGTERM)


@HOOKS.register_module()
class PreemptionHook(Hook):
    """Ends a training with a checkpoint when the cluster asks for its machines.

    After SIGUSR1 or SIGTERM to any process, all of them finish the iteration, write a checkpoint
    and leave with exit code 75 (EX_TEMPFAIL): start the same command with ``--resume``, as
    ``tools/slurm_train.sh`` does by itself. If a validation is due at that iteration, it follows
    the checkpoint. Under gradient accumulation the optimizer's step is waited for. A training by
    epochs cannot be resumed within one: it leaves at once, and goes on from the last whole epoch.

    Args:
        interval: Iterations between two looks at whether a process got a signal. A look is an
            all-reduce of one number between the CPUs; no GPU waits for it.

    Raises:
        ValueError: The interval is not a positive integer.
    """

    # After the CheckpointHook, whose checkpoint of this iteration need not be written twice.
    priority = 'LOWEST'

    def __init__(self, interval: int = 1) -> None:
        self.interval = integer('interval', interval)
        self._signal = 0
        self._leaving = False
        self._handlers: dict[int, Any] = {}
        self._group: distributed.ProcessGroup | None = None

    def before_train(self, runner: Runner) -> None:
        """Takes over the signals."""
        if distributed.is_initialized() and distributed.get_world_size() > 1:
            self._group = distributed.new_group(backend='gloo')
        self._handlers = {number: signal.signal(number, self._note) for number in _SIGNALS}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = number

    def _agreed_signal(self) -> int:
        if self._group is None:
            return self._signal
        highest = torch.tensor(self._signal)
        distributed.all_reduce(highest, distributed.ReduceOp.MAX, group=self._group)
        return int(highest)

    def after_train_iter(self, runner: Runner, *_: object, **__: object) -> None:
        """Writes a checkpoint and stops, if any process got a signal."""
        iteration = runner.iter + 1
        wrapper = runner.optim_wrapper
        if (
            iteration % self.interval
            or iteration == runner.max_iters
            or (isinstance(wrapper, OptimWrapper) and not wrapper.should_update())
        ):
            return
        number = self._agreed_signal()
        if not number:
            return
        name = signal.Signals(number).name
        if not isinstance(runner.train_loop, IterBasedTrainLoop):
            runner.logger.warning(f'{name}: leaving; resume from the last whole epoch')
            self._leave()
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook) and not hook.by_epoch:
                hook._save_checkpoint(runner)
                runner.logger.warning(f'{name}: checkpoint at iteration {iteration}, leaving')
        self._leaving = True
        runner.train_loop.stop_training = True

    def after_train(self, runner: Runner) -> None:
        """Leaves, if this is not the training's own end; gives the signals back."""
        self.give_back()
        if self._leaving:
            self._leave()

    def give_back(self) -> None:
        """Lets the signals do what they did before the training."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _leave(self) -> None:
        # The first process that is gone may take the others with it: all are done by then.
        barrier()
        raise SystemExit(os.EX_TEMPFAIL)
