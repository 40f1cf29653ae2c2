"""MainProcessLoggerHook: several processes that test one model write one metrics file."""

from __future__ import annotations

from mmengine.dist import is_main_process
from mmengine.hooks import LoggerHook
from mmengine.runner import Runner

from mmscale.registry import HOOKS


@HOOKS.register_module()
class MainProcessLoggerHook(LoggerHook):
    """MMEngine's LoggerHook, whose metrics file only the first process writes.

    The original writes the file of a test on every rank at once, so that one may end in the
    middle of another's.
    """

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Logs the metrics of a test."""
        if is_main_process():
            super().after_test_epoch(runner, metrics)
            return
        # What the processes gather for the log needs all of them.
        runner.log_processor.get_log_after_epoch(
            runner, len(runner.test_dataloader), 'test', with_non_scalar=True
        )
