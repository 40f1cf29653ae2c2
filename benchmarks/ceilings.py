#!/usr/bin/env python
"""What this machine can do at most, and how far from it steps are.

    python benchmarks/ceilings.py [--scaling-stage 0 2] [--json]

Measures the bytes a second of large and small copies (read and written) and the multiply-adds a
second of matrix products and convolutions, each the best of several. The least time of a step is
the sum over its operations of whichever is longer: its bytes at the bandwidth of copies of that
size, or its multiply-adds at the best rate. No kernel that runs one operation after the other can
be faster, unless it finds in a cache what the operation before left there; a fused one can.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from paired import arguments, environment, seconds_of
from super_net_step import SPACES, Comparison, cases
from traffic import Traffic

from mmscale.launch.command_line import set_environment

# Of what a copy reads and writes together.
SIZES = [2**exponent for exponent in range(16, 30, 2)]
REPEATS = 7
# Kinds of operations.
SHOWN = 8


def best_seconds(function: Callable[[], object], device: str, least: float = 0.02) -> float:
    """Least seconds of a call, each time of so many that the clock is fine enough."""
    function()
    once = max(seconds_of(function, device), 1e-6)
    calls = math.ceil(least / once)

    def several() -> None:
        for _ in range(calls):
            function()

    return min(seconds_of(several, device) for _ in range(REPEATS)) / calls


@dataclass(frozen=True)
class Ceilings:
    """The most that was measured.

    Attributes:
        bandwidths: Bytes read and written a second, of copies of :data:`SIZES`.
        rates: Multiply-adds a second, by what was computed.
    """

    bandwidths: list[float]
    rates: dict[str, float]

    def least_seconds(self, moved: int, products: int) -> float:
        """Of an operation that moves so many bytes and has so many multiply-adds."""
        bandwidth = np.interp(np.log2(max(moved, 1)), np.log2(SIZES), self.bandwidths)
        return max(moved / float(bandwidth), products / max(self.rates.values()))


def measure(device: str = 'cpu', dtype: torch.dtype = torch.float32) -> Ceilings:
    """Measures this machine."""
    bandwidths = []
    for size in SIZES:
        source = torch.ones(size // 8, device=device)
        target = torch.empty_like(source)
        bandwidths.append(size / best_seconds(lambda t=target, s=source: t.copy_(s), device))
    rates = {}
    side = 2048 if device == 'cpu' else 8192
    left = torch.randn(side, side, device=device, dtype=dtype)
    seconds = best_seconds(lambda: left @ left, device)
    rates[f'product of {side} x {side} matrices'] = side**3 / seconds
    # Channels, side, kernel, groups: dense, of an expansion, and depthwise.
    for channels, pixels, kernel, groups in ((128, 56, 3, 1), (96, 56, 1, 1), (144, 56, 3, 144)):
        images = torch.randn(8, channels, pixels, pixels, device=device, dtype=dtype)
        weight = torch.randn(channels, channels // groups, kernel, kernel, device=device)
        weight = weight.to(dtype)

        def run(
            images: torch.Tensor = images,
            weight: torch.Tensor = weight,
            groups: int = groups,
            kernel: int = kernel,
        ) -> torch.Tensor:
            return F.conv2d(images, weight, padding=kernel // 2, groups=groups)

        kind = 'depthwise ' if groups > 1 else ''
        products = images.numel() * weight[0].numel()
        name = f'{kind}convolution of {kernel} x {kernel}, {channels} channels'
        rates[name] = products / best_seconds(run, device)
    return Ceilings(bandwidths, rates)


def compare(ceilings: Ceilings, args: argparse.Namespace) -> tuple[list[dict], list[dict]]:
    """Every part of a step, of both ways, beside its least time; and what operations take most."""
    rows, kinds = [], []
    comparison = None
    for case in cases(args):
        if comparison is None or comparison.space != case.space:
            comparison = Comparison(case.space, args.device, channels_last=args.channels_last)
        ratios, _ = comparison.measure(case, args.rounds)
        for index, way in enumerate(('super-supernet', 'static')):
            traffic = comparison.ways[index].traffic(comparison.data, ceilings.least_seconds)
            for part, counted in traffic.items():
                about = dict(
                    space=case.space, scaling_stage=case.scaling_stage, way=way, part=part
                )
                rows.append({**about, 'seconds': ratios[part].seconds[index], **counted})
        with Traffic(ceilings.least_seconds) as counted:
            comparison.ways[0](comparison.data)
        about = dict(space=case.space, scaling_stage=case.scaling_stage)
        slowest = sorted(counted.kinds.items(), key=lambda item: -item[1][0])
        for kind, (seconds, least) in slowest[:SHOWN]:
            kinds.append({**about, 'kind': kind, 'seconds': seconds, 'least_seconds': least})
    return rows, kinds


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument('--space', nargs='+', choices=SPACES, default=['scalenet'])
    parser.add_argument('--scaling-stage', nargs='+', type=int, choices=range(5), default=[0])
    parser.add_argument(
        '--channels-last', action=argparse.BooleanOptionalAction, help="default: the config's"
    )
    parser.set_defaults(mode=['single'], draws=['repeated'])
    args = parser.parse_args()
    set_environment()
    torch.set_num_threads(1)
    ceilings = measure(args.device)
    rows, kinds = compare(ceilings, args)
    if args.json:
        found = {**environment(args.device), **asdict(ceilings), 'steps': rows, 'kinds': kinds}
        print(json.dumps(found, indent=1))
        return
    print(', '.join(f'{key} {value}' for key, value in environment(args.device).items()))
    for size, bandwidth in zip(SIZES, ceilings.bandwidths, strict=True):
        print(f'copy, {size / 2**20:8.2f} MiB read and written {bandwidth / 1e9:8.1f} GB/s')
    for name, rate in ceilings.rates.items():
        print(f'{name:50} {rate / 1e9:8.1f} G multiply-adds/s')
    print('part of a step                           measured     least    moved  multiply-adds')
    for row in rows:
        name = f'{row["space"]} S{row["scaling_stage"]} {row["way"]}, {row["part"]}'
        moved = (row['bytes_read'] + row['bytes_written']) / 1e6
        print(
            f'{name:38} {1e3 * row["seconds"]:8.1f} ms {1e3 * row["least_seconds"]:6.1f} ms '
            f'{moved:6.0f} MB {row["multiply_adds"] / 1e9:8.2f} G'
        )
    print('operations that take longest in a step of the super-supernet, seen one by one')
    for row in kinds:
        name = f'{row["space"]} S{row["scaling_stage"]} {row["kind"]}'
        seconds, least = 1e3 * row['seconds'], 1e3 * row['least_seconds']
        print(f'{name:50} {seconds:8.1f} ms {least:6.1f} ms')


if __name__ == '__main__':
    main()
