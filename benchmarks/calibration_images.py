#!/usr/bin/env python
"""Whether fewer calibration images rank candidates as well: Kendall's tau between sets of images.

``python benchmarks/calibration_images.py work_dirs/supernet_digits/iter_1000.pth``

Networks of all scaling stages, drawn from those that a search is expected to evaluate, are scored
with three different sets of each number of calibration images. What fewer images change is
compared with what another set of as many changes.
"""

import argparse
import tempfile
import time
from itertools import combinations, combinations_with_replacement, product
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from mmscale.launch.command_line import read_config
from mmscale.launch.runner import build_runner, set_environment

ROOT = Path(__file__).resolve().parents[1]
# Of every image of a set that many places further on are those of the others.
SHIFTS = (0, 7, 13)


def parse_args() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('checkpoint', help='of the digit super-supernet')
    parser.add_argument('--images', type=int, nargs='+', default=[768, 256])
    parser.add_argument('--networks', type=int, default=9, help='a scaling stage (default: 9)')
    return parser.parse_args()


def networks_of(loop: Any, count: int) -> tuple[np.ndarray, list]:
    """Scaling stages of networks, and the networks."""
    expected = sorted(loop.forecast().candidates, key=lambda c: (c.cost.flops, c.arch.digest))
    stages, archs = [], []
    rng = np.random.default_rng(0)
    for stage in range(len(loop.table.space.scaling_stages)):
        budget = loop.search.family.feasibility.budget * 2**stage
        near = [c.arch for c in expected if abs(c.cost.flops / budget - 1) < 0.12]
        for i in rng.choice(len(near), min(count, len(near)), replace=False):
            stages.append(stage)
            archs.append(near[i])
    return np.array(stages), archs


def scores_of(evaluator: Any, archs: list, count: int, shift: int) -> np.ndarray:
    """Right answers of networks that were calibrated with one set of images."""
    images = evaluator._calibration
    size = len(images._loader.dataset)
    images._indices = [(i * size // count + shift) % size for i in range(count)]
    images._cache.clear()
    return np.array([evaluator.evaluate(arch).correct for arch in archs])


def tau(one: np.ndarray, other: np.ndarray, stages: np.ndarray) -> np.ndarray:
    """Kendall's tau of all networks, and its mean within scaling stages."""
    groups = [stages == stage for stage in np.unique(stages)]
    within = [kendalltau(one[group], other[group]).statistic for group in groups]
    return np.array([kendalltau(one, other).statistic, np.mean(within)])


def main() -> None:
    """Scores and prints."""
    args = parse_args()
    set_environment()
    config = ROOT / 'configs' / 'scalenet' / 'search-mcea_digits.py'
    with tempfile.TemporaryDirectory() as work_dir:
        config = read_config(str(config), ['log_level=ERROR'], work_dir)
        config.load_from = args.checkpoint
        runner = build_runner(config, 'test')
        runner.load_or_resume()
        stages, archs = networks_of(runner.test_loop, args.networks)
        found: dict[int, list[np.ndarray]] = {}
        for count in args.images:
            start = time.process_time()
            found[count] = [
                scores_of(runner.test_loop.evaluator, archs, count, shift) for shift in SHIFTS
            ]
            seconds = (time.process_time() - start) / len(SHIFTS)
            print(f'{count} images: {len(archs)} networks in {seconds:.1f} s', flush=True)
    for one, other in combinations_with_replacement(args.images, 2):
        pairs = combinations(found[one], 2) if one == other else product(found[one], found[other])
        overall, within = np.mean([tau(*pair, stages) for pair in pairs], axis=0)
        print(f'{one} and {other}: tau {overall:.3f}, within a scaling stage {within:.3f}')


if __name__ == '__main__':
    main()
