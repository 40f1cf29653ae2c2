"""What a search will take: a few of its candidates are timed, and the others predicted."""

from __future__ import annotations

import io
import math
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmscale.apis.search import profile
from mmscale.cost import Cost, LatencyModel, LatencySetting
from mmscale.errors import UsageError
from mmscale.launch.runner import build_runner
from mmscale.search import Entry, EvaluationError, Score
from mmscale.search.forecast import Expected, Forecast
from mmscale.search.profile import SearchProfile
from mmscale.search.scoring import split_by_cost
from mmscale.tables import Printed, make_table

if TYPE_CHECKING:
    from mmengine.config import Config
    from rich.table import Table

    from mmscale.engine import SubnetEvaluator

_FEWEST_TIMED = 3
# Of the candidates by rising cost, which are timed, as long as there is time.
_TIMED = (1.0, 0.5, 0.25, 0.75, 0.125, 0.625, 0.375, 0.875)
_PROCESSES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class TimedCandidate:
    """A candidate that was evaluated to see how long it takes.

    Attributes:
        resolution: Side of its input, in pixels.
        cost: Its cost.
        seconds: Time of the evaluation.
        own_seconds: On a CPU the processor time of it, by thread: the time it would take if
            nobody else used the processor. On other devices as `seconds`.
    """

    resolution: int
    cost: Cost
    seconds: float
    own_seconds: float


@dataclass(frozen=True)
class Duration:
    """How long the search takes on so many processes, each on a device of its own.

    Attributes:
        processes: Number of processes.
        seconds: From the first evaluation to the last, if others use the processor as they did
            while candidates were timed.
        own_seconds: The same, if nobody else does.
        idle: Share of the processes' time in which they wait for others.
    """

    processes: int
    seconds: float
    own_seconds: float
    idle: float


@dataclass(frozen=True, repr=False)
class SearchPlan(Printed):
    """What a search will take; prints its tables.

    Attributes:
        profile: What there is to search, and what the budgets admit.
        weights: Checkpoint of the super-supernet; None where there is none yet, and its weights
            are random.
        expected_evaluations: About how many networks are evaluated.
        device: What the candidates were timed on.
        devices: How many such devices are at hand; of CPUs, what their cores allow.
        timed: The candidates that were timed.
        error: Median of abs(predicted / measured - 1) over them.
        durations: By number of processes.
        host_bytes: Memory of a process.
        device_bytes: Memory of the device, None on a CPU.
        disk_bytes: What is written at most, and about how much is expected.
        final: Of a final round the networks that are scored at most, and the images for each; None
            without one. They are not counted above.
        free_bytes: What is free where the work dir is to be.
    """

    profile: SearchProfile
    weights: str | None
    expected_evaluations: int
    device: str
    devices: int
    timed: tuple[TimedCandidate, ...]
    error: float
    durations: tuple[Duration, ...]
    host_bytes: int
    device_bytes: int | None
    disk_bytes: tuple[int, int]
    free_bytes: int
    final: tuple[int, int] | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the plan as plain JSON data."""
        return asdict(self)

    def renderables(self) -> list[Table | str]:
        """The candidates that were timed, times by the number of processes, memory and disk."""
        timed = [
            (
                one.resolution,
                *(f'{number:,}' for number in (one.cost.flops, one.cost.acts)),
                *(f'{seconds:.2f}' for seconds in (one.seconds, one.own_seconds)),
            )
            for one in self.timed
        ]
        durations = [
            (
                f'{one.processes}{"" if one.processes <= self.devices else " *"}',
                _time_of(one.seconds),
                _time_of(one.own_seconds),
                f'{one.idle:.0%}',
            )
            for one in self.durations
        ]
        return [
            make_table(
                f'candidates timed on {self.device}',
                ('px', 'flops', 'acts', 'seconds', 'alone'),
                timed,
            ),
            make_table(
                'the search on so many of these devices',
                ('processes', 'time', 'alone', 'idle'),
                durations,
            ),
            *self._lines(),
        ]

    def _lines(self) -> list[str]:
        found = self.profile
        lines = [
            f'evaluations: about {self.expected_evaluations:,}, at most {found.most_evaluations:,}'
        ]
        if len(found.stages) == 1 and found.stages[0].admitted is not None:
            lines.append(f'budget: {found.stages[0].admitted} of the networks meet it')
        elif found.scalable is not None:
            lines.append(
                f'budgets: {found.stages[0].admitted} of the base models meet theirs; of these '
                f'{found.scalable} scale to all scaling stages'
            )
            shares = (f'{stage.admitted}' for stage in found.stages[1:])
            lines.append(f'  of the scalings, by scaling stage: {", ".join(shares)}')
        if self.final is not None:
            networks, images = self.final
            lines.append(
                f'final round, where leaders are not told apart: at most {networks} networks on '
                f'{images:,} images each, beside these evaluations and times'
            )
        lines.append(
            f'predicted times of the timed candidates are off by {self.error:.0%} (median)'
        )
        if any(one.processes > self.devices for one in self.durations):
            lines.append(f'* more than the {self.devices} at hand, were they alike')
        lines.append('time: as busy as the devices are now; alone: if nobody else uses them')
        if self.weights is None:
            lines.append('times with random weights: load_from names no checkpoint yet')
        memory = f'memory: {_size(self.host_bytes)} a process'
        if self.device_bytes is not None:
            memory += f', {_size(self.device_bytes)} of its GPU'
        largest, expected = self.disk_bytes
        lines += [
            memory,
            f'disk: about {_size(expected)}, at most {_size(largest)}; free: '
            f'{_size(self.free_bytes)}',
        ]
        if self.free_bytes < largest:
            lines.append('THE DISK MAY FILL UP: take another work_dir (--work-dir)')
        return lines


def make_plan(config: Config, seconds: float = 20.0) -> SearchPlan:
    """Plans the search of a config: super-supernet and data are read, candidates are timed.

    As long as there is no checkpoint of the super-supernet its weights are random: a candidate
    takes about as long with them. Nothing is written, but for a temporary folder that is removed,
    and data sets that are made when they are used first.

    Args:
        config: The config of a search.
        seconds: No further candidate is timed after so long, if three were.

    Raises:
        UsageError: The config has no search, or a setting is unknown or not allowed.
    """
    found = profile(config)
    work_dir = Path(config.work_dir)
    weights = config.get('load_from')
    if isinstance(weights, (str, Path)) and '://' not in str(weights):
        weights = str(weights) if Path(weights).is_file() else None
    # MMEngine prints the checkpoint's path, and pycocotools what it reads.
    with tempfile.TemporaryDirectory() as temporary, redirect_stdout(io.StringIO()):
        config = config.copy()
        config.work_dir, config.log_level, config.load_from = temporary, 'ERROR', weights
        runner = build_runner(config, 'test')
        runner.load_or_resume()
        loop = runner.test_loop
        plan = _plan(found, weights, loop.forecast(), loop.evaluator, work_dir, seconds)
        return replace(plan, final=loop.most_final)


def _plan(
    found: SearchProfile,
    weights: str | None,
    forecast: Forecast,
    evaluator: SubnetEvaluator,
    work_dir: Path,
    seconds: float,
) -> SearchPlan:
    from torch import cuda

    on_gpu = next(evaluator.model.parameters()).is_cuda
    timed, loading, image_bytes = _time(forecast, evaluator, seconds, on_gpu)
    model = _fitted(timed)
    batches = [[_predicted(model, c.cost) for c in batch] for batch in forecast.batches]
    # Every process reads the images of every resolution once.
    loaded = sum(loading * c.resolution**2 for c in _by_resolution(forecast))
    cores = len(os.sched_getaffinity(0))
    devices = cuda.device_count() if on_gpu else max(cores // evaluator.threads, 1)
    processes = sorted({*_PROCESSES, devices})
    images = sum(image_bytes * c.resolution**2 for c in _by_resolution(forecast))
    held = sum(image_bytes * r**2 for r in {t.resolution for t in timed})
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ratios = [abs(_predicted(model, t.cost) / t.own_seconds - 1) for t in timed]
    slowdown = sum(t.seconds for t in timed) / sum(t.own_seconds for t in timed)
    line = len(_longest_line(forecast)) + 1
    weight_bytes = sum(4 * stage.largest.cost.params for stage in found.stages)
    expected = len(forecast.candidates)
    return SearchPlan(
        profile=found,
        weights=weights,
        expected_evaluations=expected,
        device=cuda.get_device_name() if on_gpu else f'CPU, {evaluator.threads} threads',
        devices=devices,
        timed=tuple(timed),
        error=sorted(ratios)[len(ratios) // 2],
        durations=tuple(_duration(batches, number, loaded, slowdown) for number in processes),
        host_bytes=round(peak + max(images - held, 0)),
        device_bytes=cuda.max_memory_allocated() if on_gpu else None,
        disk_bytes=(
            line * found.most_evaluations + weight_bytes,
            line * expected + weight_bytes,
        ),
        free_bytes=shutil.disk_usage(_existing(work_dir)).free,
    )


def _existing(path: Path) -> Path:
    return next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())


def _by_resolution(forecast: Forecast) -> list[Any]:
    """An Arch of every resolution."""
    return list({c.arch.resolution: c.arch for c in forecast.candidates}.values())


def _longest_line(forecast: Forecast) -> str:
    longest = max(forecast.candidates, key=lambda c: len(c.arch.blocks))
    return Entry(longest.arch, longest.cost, Score(10**6, 10**6)).to_line()


def _time(
    forecast: Forecast, evaluator: SubnetEvaluator, seconds: float, on_gpu: bool
) -> tuple[list[TimedCandidate], float, float]:
    """Times candidates.

    Returns:
        The candidates, and per pixel the seconds to read the images, of their own, and the bytes
        that they take.
    """
    by_cost = sorted(forecast.candidates, key=lambda c: (c.cost.flops, c.arch.digest))
    chosen: list[Expected] = []
    for share in _TIMED:
        candidate = by_cost[round(share * (len(by_cost) - 1))]
        if candidate not in chosen:
            chosen.append(candidate)

    def own(start: float, cpu: float) -> float:
        passed = time.perf_counter() - start
        return passed if on_gpu else min((time.process_time() - cpu) / evaluator.threads, passed)

    end = time.monotonic() + seconds
    # The first of all takes longer.
    evaluator.prepare(by_cost[0].arch.resolution)
    _evaluate(evaluator, by_cost[0])
    timed: list[TimedCandidate] = []
    pixels, reading, held = 0, 0.0, 0
    prepared = {by_cost[0].arch.resolution}
    for candidate in chosen:
        if len(timed) >= _FEWEST_TIMED and time.monotonic() > end:
            break
        resolution = candidate.arch.resolution
        if resolution not in prepared:
            prepared.add(resolution)
            start, cpu = time.perf_counter(), time.process_time()
            held += evaluator.prepare(resolution)
            reading += own(start, cpu)
            pixels += resolution**2
        start, cpu = time.perf_counter(), time.process_time()
        _evaluate(evaluator, candidate)
        own_seconds, passed = own(start, cpu), time.perf_counter() - start
        timed.append(TimedCandidate(resolution, candidate.cost, passed, own_seconds))
    return timed, reading / max(pixels, 1), held / max(pixels, 1)


def _evaluate(evaluator: SubnetEvaluator, candidate: Expected) -> None:
    try:
        evaluator.evaluate(candidate.arch)
    except EvaluationError as error:
        flops = f'{candidate.cost.flops:,}'
        raise UsageError(f'a network of {flops} flops cannot be scored: {error}') from error


def _fitted(timed: Sequence[TimedCandidate]) -> LatencyModel | float:
    """What predicts seconds: a model, or seconds per multiply-add where few were timed."""
    if len({(t.cost.flops, t.cost.acts) for t in timed}) >= _FEWEST_TIMED:
        milliseconds = [1000 * t.own_seconds for t in timed]
        return LatencyModel.fit([t.cost for t in timed], milliseconds, LatencySetting())
    return sum(t.own_seconds for t in timed) / sum(t.cost.flops for t in timed)


def _predicted(model: LatencyModel | float, cost: Cost) -> float:
    if isinstance(model, float):
        return model * cost.flops
    return float(model.predict(cost)) / 1000


def _duration(
    batches: Sequence[Sequence[float]], processes: int, loaded: float, slowdown: float
) -> Duration:
    """How long batches take, each split over processes as a search does."""
    total, work = loaded, sum(map(sum, batches)) + loaded * processes
    for batch in batches:
        # Whole numbers, as a search splits by flops.
        shares = split_by_cost([math.ceil(1e6 * cost) for cost in batch], processes)
        total += max(sum(batch[i] for i in share) for share in shares)
    idle = max(1 - work / (total * processes), 0.0)
    return Duration(processes, total * slowdown, total, idle)


# ---------------------------------------------------------------------- print


def _time_of(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _size(count: float) -> str:
    unit = 'B'
    for unit in ('B', 'KB', 'MB', 'GB', 'TB'):
        if count < 1000 or unit == 'TB':
            break
        count /= 1000
    return f'{count:.3g} {unit}'
