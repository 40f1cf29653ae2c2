#!/usr/bin/env python
"""What grows how: time and memory against the size of what they depend on.

    python benchmarks/growth.py [--json]

Of the paper's space: a search by a score that costs nothing against its population; costing
against the number of networks; building a super-supernet, its parameters, and the host's work in a
training step of its largest network against the blocks of the space; a training step of S0's
network, and an image in the cache, against the resolution. Archives of growing length are
benchmarks/archive.py's. Times are processor seconds of one thread, the least of several; the
exponent is that of the power law that fits best.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from paired import environment, seconds_of

from mmscale.arch import Arch, SearchSpace
from mmscale.cost import CostTable
from mmscale.launch.command_line import set_environment
from mmscale.models import ArchNet, SuperNet
from mmscale.search import MCEA, Archive, FamilyFitness, Feasibility, Score, Scorer

SPACE = Path(__file__).parents[1] / 'configs' / '_base_' / 'search_spaces' / 'scalenet.py'
# As in configs/scalenet/search-mcea_in1k.py.
BUDGET, TOLERANCE = 340e6, 0.05


@dataclass(frozen=True)
class Growth:
    """One quantity against another.

    Attributes:
        quantity: What grows, with its unit.
        of: What it grows with.
        sizes: Of that.
        values: Of the quantity.
    """

    quantity: str
    of: str
    sizes: list[int]
    values: list[float]

    @property
    def exponent(self) -> float:
        """Of the power law that fits best."""
        return float(np.polyfit(np.log(self.sizes), np.log(self.values), 1)[0])


class Constant:
    """Scores every network alike, by its digest, at no cost."""

    fingerprint = {'score': 'by digest'}

    def evaluate(self, arch: Arch, needed: object = None) -> Score:
        return Score(int(arch.digest[:4], 16), 2**16)


def least(function: Callable[[], object], repeats: int) -> float:
    """Least seconds of several calls, after one to warm up."""
    function()
    return min(seconds_of(function) for _ in range(repeats))


def paper_space(deeper: int = 1) -> SearchSpace:
    """The paper's space, of as many times its depths."""
    settings = Config.fromfile(SPACE).space.to_dict()
    for stage in settings['stages']:
        stage['depths'] = [deeper * depth for depth in stage['depths']]
    return SearchSpace(**settings)


def populations(sizes: Sequence[int], repeats: int) -> Iterator[Growth]:
    """A search without its evaluations."""
    space = paper_space()
    family = FamilyFitness(Feasibility(CostTable(space), BUDGET, tolerance=TOLERANCE))

    def search(size: int) -> int:
        found = MCEA(family, population=size, generations=4, rounds=1, num_base_models=4)
        with (
            tempfile.TemporaryDirectory() as folder,
            Archive(Path(folder), Constant.fingerprint) as archive,
        ):
            return found.run(Scorer(archive, Constant())).evaluations

    evaluations = [search(size) for size in sizes]
    seconds = [least(lambda size=size: search(size), repeats) for size in sizes]
    yield Growth('search outside evaluation, s', 'population', list(sizes), seconds)
    each = [1e3 * one / other for one, other in zip(seconds, evaluations, strict=True)]
    yield Growth('the same per evaluation, ms', 'population', list(sizes), each)


def costings(sizes: Sequence[int], repeats: int) -> Iterator[Growth]:
    """Costs of whole populations."""
    space = paper_space()
    table = CostTable(space)
    genes = space.sample(np.random.default_rng(0), max(sizes))
    seconds = [least(lambda size=size: table.costs(genes[:size]), repeats) for size in sizes]
    yield Growth('costing, s', 'networks', list(sizes), seconds)


def spaces(factors: Sequence[int], repeats: int) -> Iterator[Growth]:
    """Super-supernets of spaces of more and more blocks."""
    sizes, params, built, tables, forwards = [], [], [], [], []
    for factor in factors:
        space = paper_space(factor)
        sizes.append(len(space.allocation.blocks))
        net = SuperNet(space).train()
        params.append(float(sum(p.numel() for p in net.parameters())))
        built.append(least(lambda space=space: SuperNet(space), repeats))
        tables.append(
            least(
                lambda space=space: CostTable(space).costs(
                    space.sample(np.random.default_rng(0), 1)
                ),
                repeats,
            )
        )
        images = torch.zeros(2, 3, 32, 32)
        net.set_arch(space.largest())
        forwards.append(least(lambda net=net, images=images: net(images), repeats))
    yield Growth('parameters of a super-supernet', 'blocks of the space', sizes, params)
    yield Growth('building it, s', 'blocks of the space', sizes, built)
    yield Growth('building a cost table, s', 'blocks of the space', sizes, tables)
    yield Growth('forward pass of its largest, 32 px, s', 'blocks of the space', sizes, forwards)


def resolutions(sizes: Sequence[int], repeats: int) -> Iterator[Growth]:
    """Steps and images."""
    net = ArchNet(paper_space().largest(0)).train()
    seconds = []
    for size in sizes:
        images = torch.zeros(4, 3, size, size)

        def step(images: torch.Tensor = images) -> None:
            net.zero_grad()
            net(images)[-1].mean().backward()

        seconds.append(least(step, repeats))
    yield Growth('forward and backward pass of 4 images, s', 'resolution', list(sizes), seconds)
    cached = [float(3 * size**2) for size in sizes]
    yield Growth('a cached image, bytes', 'resolution', list(sizes), cached)


def rows(is_quick: bool) -> Iterator[Growth]:
    """Everything."""
    repeats = 1 if is_quick else 3
    yield from populations((2, 4) if is_quick else (16, 64, 256), repeats)
    yield from costings((10, 100) if is_quick else (1_000, 10_000, 100_000), repeats)
    yield from spaces((1, 2) if is_quick else (1, 2, 4), repeats)
    yield from resolutions((32, 64) if is_quick else (64, 128, 192, 256), repeats)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--quick', action='store_true', help='small sizes, to see that it works')
    parser.add_argument('--json', action='store_true', help='print a list of objects')
    args = parser.parse_args()
    set_environment()
    torch.set_num_threads(1)
    found = list(rows(args.quick))
    if args.json:
        data: list[dict[str, Any]] = [
            {**asdict(row), 'exponent': row.exponent, 'environment': environment()}
            for row in found
        ]
        print(json.dumps(data, indent=1))
        return
    print(', '.join(f'{key} {value}' for key, value in environment().items()))
    for row in found:
        pairs = zip(row.sizes, row.values, strict=True)
        measured = ', '.join(f'{size:,}: {value:.4g}' for size, value in pairs)
        print(f'{row.quantity} ~ ({row.of}) ^ {row.exponent:.2f}   {measured}')


if __name__ == '__main__':
    main()
