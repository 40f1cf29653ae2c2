#!/usr/bin/env python
"""How many Archs a second the cost table costs, against counting them one by one.

    python benchmarks/cost_table.py [SPACE.py ...] [--archs 200000] [--rounds 7]

A space is a config with a variable ``space``; by default all of configs/_base_/search_spaces and
one that chooses everything. Genotypes are drawn uniformly; a sample of them is decoded and
counted, and must cost the same. One thread. Rates are the median [quartiles] of rounds of CPU
time; the ratio is that of the rates of the same round.
"""

from __future__ import annotations

import argparse
import json
import os

os.environ.setdefault('OMP_NUM_THREADS', '1')

import statistics
import time
from pathlib import Path

import numpy as np
from mmengine.config import Config

from mmscale.arch import SearchSpace
from mmscale.cost import CostTable, count

SPACES = Path(__file__).parents[1] / 'configs' / '_base_' / 'search_spaces'
# Every list that a network stage may have, in five network stages of up to eight blocks.
RICHEST = dict(
    stages=[
        dict(
            channels=[width, width + 16, width + 32, width + 48],
            stride=2,
            depths=list(range(1, 9)),
            kind=['mbconv', 'fused_mbconv', 'bottleneck'],
            kernels=[3, 5, 7],
            expands=[2, 3, 4, 6],
            group_widths=[0, 1, 8],
            se=[False, True],
            act=['relu', 'silu'],
        )
        for width in (16, 32, 64, 128, 256)
    ],
    resolution=[128, 160, 192, 224, 256],
    stem=dict(channels=[16, 24, 32]),
    head=dict(channels=[960, 1280], hidden_channels=[1024, 1280]),
    num_classes=1000,
    se=dict(ratio=0.25, divisor=8),
    rounding=dict(mode='divisible', channel_divisor=8),
)


def rates(space: SearchSpace, archs: int, rounds: int, sample: int = 50) -> dict[str, object]:
    """Archs a second by table and one by one, and their ratio, of every round."""
    rng = np.random.default_rng(0)
    table = CostTable(space)
    scaling = space.scalings(len(space.scaling_stages) - 1)[-1]
    start = time.process_time()
    table.costs(space.sample(rng, 1), scaling)
    building = time.process_time() - start
    by_table, one_by_one = [], []
    for _ in range(rounds):
        genes = rng.integers(0, space.num_choices, (archs, space.num_genes))
        start = time.process_time()
        costs = table.costs(genes, scaling)
        by_table.append(archs / (time.process_time() - start))
        start = time.process_time()
        counted = [count(space.decode(row, scaling)) for row in genes[:sample]]
        one_by_one.append(sample / (time.process_time() - start))
        for cost, *found in zip(counted, *(column[:sample] for column in costs), strict=True):
            if found != [cost.flops, cost.params, cost.acts]:
                raise SystemExit(f'the table says {found}, counting {cost}')
    return {
        'networks': float(space.size),
        'genes': space.num_genes,
        'building_s': building,
        'table': by_table,
        'counting': one_by_one,
        'ratio': [a / b for a, b in zip(by_table, one_by_one, strict=True)],
    }


def shown(values: list[float]) -> str:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f'{middle:,.0f} [{low:,.0f} {high:,.0f}]'


def main() -> None:
    """Prints a row a space."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('spaces', nargs='*', type=Path, metavar='SPACE.py')
    parser.add_argument('--archs', type=int, default=200_000)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--json', action='store_true')
    args = parser.parse_args()
    paths = args.spaces or sorted(SPACES.glob('*.py'))
    configs = {path.stem: Config.fromfile(path).space.to_dict() for path in paths}
    if not args.spaces:
        configs['everything'] = RICHEST
    found = {}
    if not args.json:
        print('| space | networks | genes | Archs/s by table | one by one | ratio | building, s |')
        print('|---' * 7 + '|')
    for name, config in configs.items():
        found[name] = row = rates(SearchSpace(**config), args.archs, args.rounds)
        if not args.json:
            cells = (shown(row[key]) for key in ('table', 'counting', 'ratio'))
            print(
                f'| {name} | {row["networks"]:.3g} | {row["genes"]} | {" | ".join(cells)} | '
                f'{row["building_s"]:.2f} |',
                flush=True,
            )
    if args.json:
        print(json.dumps(found))


if __name__ == '__main__':
    main()
