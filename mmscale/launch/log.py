"""What of a run's log goes to the screen, and what to its file alone."""

from __future__ import annotations

import logging
import traceback
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmscale.datasets import accept_draws, build_dataloader
from mmscale.engine.hooks import PreemptionHook
from mmscale.errors import FOREIGN_ERRORS, MMScaleError, one_line
from mmscale.shown import visible_lines

# How the records begin that are long or tell users nothing; the file has them all.
_FILE_ONLY = (
    f'\n{"-" * 60}\nSystem environment:',
    'Config:\n',
    'Hooks will be executed in the following order:',
    'paramwise_options -- ',
    '"FileClient" will be deprecated',
    '"HardDiskBackend" is the alias',
)
# What says by itself all that there is to say.
_PLAIN = (MMScaleError, OSError, FloatingPointError)


def _is_for_the_screen(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_FILE_ONLY)


def _is_visible(record: logging.LogRecord) -> bool:
    """Makes what acts on a terminal visible: a message may quote a file that others made."""
    record.msg, record.args = visible_lines(record.getMessage()), ()
    return True


class ShortLogRunner(Runner):
    """MMEngine's Runner, which shows where its config and environment are instead of them.

    With ``log_level='DEBUG'`` all is shown.
    """

    @staticmethod
    def build_dataloader(*settings: Any, **named: Any) -> DataLoader:
        """Builds a data loader, see MMEngine; it says which file it cannot read."""
        loader = build_dataloader(*settings, **named)
        accept_draws(loader.dataset)
        return loader

    def dump_config(self) -> None:
        """Writes the config to the work dir, see MMEngine, and to no file of another name."""
        name = f'{self.timestamp}.py' if self.cfg.filename is None else self.cfg.filename
        path = Path(self.work_dir) / Path(name).name
        if is_main_process() and path.is_file() and path.stat().st_nlink > 1:
            path.unlink()
        super().dump_config()

    def build_logger(
        self, log_level: int | str = 'INFO', log_file: str | None = None, **settings: Any
    ) -> MMLogger:
        """Builds the log of the run, see MMEngine."""
        logger = super().build_logger(log_level, log_file, **settings)
        logger.addFilter(_is_visible)
        for handler in logger.handlers:
            is_screen = not isinstance(handler, logging.FileHandler)
            if not is_screen:
                # Whatever letters the locale has.
                handler.stream.reconfigure(errors='backslashreplace')
            if is_screen and handler.level > logging.DEBUG:
                handler.addFilter(_is_for_the_screen)
        logger.info('config, environment and hooks of this run: %s', logger.log_file)
        return logger


def _written_traceback(runner: Runner, error: BaseException) -> str | None:
    """Writes where an error comes from to the log file alone; returns that file's name."""
    files = [one for one in runner.logger.handlers if isinstance(one, logging.FileHandler)]
    record = logging.LogRecord(
        runner.logger.name, logging.ERROR, __file__, 0,
        visible_lines(''.join(traceback.format_exception(error))), (), None,
    )  # fmt: skip
    for handler in files:
        handler.handle(record)
    return files[0].baseFilename if files else None


def run(runner: Runner, phase: str) -> Any:
    """Trains or tests; what stops the run becomes one line, and its traceback goes to the log.

    Args:
        runner: From :func:`mmscale.launch.build_runner`.
        phase: ``train`` or ``test``.

    Returns:
        What the runner returns: the model of a training, the metrics of a test.

    Raises:
        MMScaleError: The run was stopped by an error in the code that it went through.
        OSError: As it is.
        FloatingPointError: As it is.
    """
    try:
        return getattr(runner, phase)()
    except _PLAIN:
        raise
    except FOREIGN_ERRORS as error:
        log = _written_traceback(runner, error)
        if log is None:
            raise
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise MMScaleError(
            f'{phase} stopped at iteration {runner.iter}: {one_line(error):.400} '
            f'({Path(last.filename).name}:{last.lineno}; traceback in {log})'
        ) from error
    finally:
        for hook in runner.hooks:
            if isinstance(hook, PreemptionHook):
                hook.give_back()
