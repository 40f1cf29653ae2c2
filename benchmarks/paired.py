"""Paired timing, which all benchmarks of speed share: two ways take turns in one process.

Machines are noisy: both ways meet the same noise, and what is reported is the ratio of neighbours,
its median and quartiles. On a CPU the time is that of this process alone, which busy neighbours
hardly change; on a GPU it is the wall clock, after the device has finished.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

WARMUP = 3


@dataclass(frozen=True)
class Ratio:
    """Time of one way over that of another.

    Attributes:
        ratio: Median of the ratios of neighbours.
        quartiles: Of the same.
        seconds: Median seconds of the first way and of the second.
        rounds: Number of pairs.
    """

    ratio: float
    quartiles: tuple[float, float]
    seconds: tuple[float, float]
    rounds: int

    def __str__(self) -> str:
        low, high = self.quartiles
        return f'{self.ratio:.3f} [{low:.3f} {high:.3f}]'


def now(device: str = 'cpu', waits: bool = True) -> float:
    """Seconds on the clock; a GPU has finished before, unless nothing waits for it."""
    if device == 'cpu':
        return time.process_time()
    if waits:
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_of(function: Callable[[], object], device: str = 'cpu') -> float:
    """Seconds that a call takes."""
    start = now(device)
    function()
    return now(device) - start


def paired(
    first: Callable[[], object],
    second: Callable[[], object],
    rounds: int,
    device: str = 'cpu',
    warmup: int = WARMUP,
) -> Ratio:
    """Times `first` over `second`.

    Args:
        first: What is of interest.
        second: What it is compared with.
        rounds: Pairs that count.
        device: ``cpu`` or ``cuda``.
        warmup: Pairs before them that do not.
    """
    times = []
    for number in range(warmup + rounds):
        pair = [0.0, 0.0]
        # Whoever comes second finds warm caches: they take turns in that too.
        order = [(0, first), (1, second)]
        for index, function in order if number % 2 else order[::-1]:
            pair[index] = seconds_of(function, device)
        times.append(pair)
    return ratio_of(times[warmup:])


def ratio_of(times: Sequence[Sequence[float]]) -> Ratio:
    """The ratio of pairs of seconds that were measured, shape (rounds, 2)."""
    one, other = np.array(times).T
    low, ratio, high = np.quantile(one / other, [0.25, 0.5, 0.75]).tolist()
    return Ratio(ratio, (low, high), (float(np.median(one)), float(np.median(other))), len(times))


def environment(device: str = 'cpu') -> dict[str, Any]:
    """What absolute times depend on."""
    name = torch.cuda.get_device_name() if device != 'cpu' else _processor()
    return {
        'device': name,
        'threads': torch.get_num_threads(),
        'torch': torch.__version__,
        'python': platform.python_version(),
    }


def _processor() -> str:
    try:
        with open('/proc/cpuinfo', encoding='utf-8') as file:
            names = [line.partition(':')[2].strip() for line in file if 'model name' in line]
        return f'{names[0]}, {len(names)} cores'
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


def arguments(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks of speed have.

    Args:
        description: The script's docstring.
        rounds: Pairs by default.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--rounds', type=int, default=rounds, help=f'pairs (default: {rounds})')
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument('--json', action='store_true', help='print a list of objects')
    return parser


def show(rows: Sequence[tuple[dict[str, Any], Ratio]], args: argparse.Namespace) -> None:
    """Prints rows of (what was measured, its ratio), as lines or as JSON, with the environment."""
    found = environment(args.device)
    if args.json:
        print(
            json.dumps(
                [
                    {
                        **what,
                        'ratio': round(ratio.ratio, 4),
                        'quartiles': [round(value, 4) for value in ratio.quartiles],
                        'seconds': [round(value, 6) for value in ratio.seconds],
                        'rounds': ratio.rounds,
                        'environment': found,
                    }
                    for what, ratio in rows
                ],
                indent=1,
            )
        )
        return
    print(', '.join(f'{key} {value}' for key, value in found.items()))
    for what, ratio in rows:
        text = '  '.join(str(value) for value in what.values())
        first, second = (1e3 * value for value in ratio.seconds)
        print(f'{text:60} {ratio}   {first:9.1f} ms over {second:9.1f} ms', flush=True)
