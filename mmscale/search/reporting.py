"""What a search tells while it runs: progress lines, and its events and results as files."""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

from mmscale.arch import Arch
from mmscale.cost import Cost
from mmscale.files import open_to_append
from mmscale.search.result import ChainStep, Generation
from mmscale.search.scoring import Progress

_SECONDS_BETWEEN_LINES = 10.0


class ProgressLog:
    """Logs how far a search is, with an estimate of the time that is left.

    Where it is known about how many evaluations there will be, that is what the estimate is of,
    else it is of the most that there can be.

    Args:
        logger: Where to.
        processes: Number of processes that search together.
    """

    def __init__(self, logger: logging.Logger, processes: int = 1) -> None:
        self._logger = logger
        self._processes = processes
        self._start: tuple[float, int] | None = None
        self._last = -math.inf
        self._step = ''

    def __call__(self, progress: Progress) -> None:
        """Logs a line if there is a new step or if the last line is some seconds old."""
        now = time.monotonic()
        if self._start is None:
            self._start = now, progress.fresh
        if progress.step == self._step and now - self._last < _SECONDS_BETWEEN_LINES:
            return
        self._step, self._last = progress.step, now
        line = f'{progress.step}: {progress.evaluations} evaluations'
        expected, most = progress.expected_evaluations, progress.most_evaluations
        is_expected = expected > progress.evaluations
        if is_expected:
            line += f' of about {expected}'
        elif most:
            line += f' of at most {most}'
        if progress.failed:
            line += f', {progress.failed} failed'
        if progress.best is not None:
            line += f', best fitness {float(progress.best):.4f}'
        fresh = progress.fresh - self._start[1]
        if fresh and (is_expected or most):
            left = (expected if is_expected else most) - progress.evaluations
            seconds = (now - self._start[0]) / fresh * left / self._processes
            about = 'about' if is_expected else 'at most'
            line += f', eta {about} {timedelta(seconds=round(seconds))}'
        self._logger.info(line)


class _JsonLines:
    """A JSON-lines file that is opened with its first line, and has every line at once.

    Args:
        path: The file.
    """

    _anew = False

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None

    def _append(self, line: dict[str, Any]) -> None:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open_to_append(self._path, self._anew)
        self._file.write(json.dumps(line) + '\n')
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


class History(_JsonLines):
    """The events of a search, a line as soon as there is an event.

    The file is started anew with the first event, so that a search that is refused leaves the
    one of an earlier search.
    """

    _anew = True

    def write(self, event: ChainStep | Generation) -> None:
        """Appends an event."""
        self._append(event.to_json())


class SecondsLog(_JsonLines):
    """How long each evaluation of a process took; lines are appended.

    It is apart from the archive, which holds nothing that differs from run to run.
    """

    def __call__(self, arch: Arch, cost: Cost, seconds: float) -> None:
        """Appends an evaluation."""
        about = {'digest': arch.digest, 'resolution': arch.resolution, **asdict(cost)}
        self._append({**about, 'seconds': round(seconds, 4)})


def describe(step: ChainStep | Generation, resolution: int) -> str | None:
    """A step of the chain, or a generation that was predicted, as a log line; else None.

    Args:
        step: The step.
        resolution: Resolution of the base model, in pixels, or the largest that it may have.
    """
    if isinstance(step, Generation):
        if step.rank_correlation is None:
            return None
        return (
            f'surrogate: {step.step}, generation {step.number}: rank correlation '
            f'{step.rank_correlation:.2f} of what was predicted with what was measured'
        )
    strategy = ', '.join(
        f'({s.depth:g}, {s.width:g}, {round(s.resolution * resolution)} px)' for s in step.strategy
    )
    fitness = '' if step.fitness is None else f' fitness {float(step.fitness):.4f},'
    line = f'chain: {step.kind}, round {step.round}:{fitness} {step.evaluations} evaluations'
    if len(step.strategy) == 1:
        return line
    return f'{line}, strategy (depth, width, resolution) {strategy}'
