#!/usr/bin/env python
"""Writes what a search of the digit space has scored as a small table: genes, scaling, score.

``python benchmarks/super_supernet_scores.py work_dirs/search-random_digits scores.csv``, after
``tools/search.py configs/scalenet/search-random_digits.py`` with
``test_cfg.search.evaluations=500``.

An archive holds networks. Which base model and scaling one is, is found by scaling every base
model that is there itself.
"""

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config

from mmscale.arch import Arch, SearchSpace
from mmscale.errors import UsageError
from mmscale.search import Archive, Score

CONFIG = Path(__file__).parents[1] / 'configs/_base_/search_spaces/digits.py'
COLUMNS = ('genes', 'scaling_stage', 'depth', 'width', 'resolution', 'correct', 'total')


def rows(space: SearchSpace, scores: dict[Arch, Score]) -> Iterator[tuple[object, ...]]:
    """A row per network of a family; multipliers are the first that make the network."""
    for base in scores:
        try:
            genotype = space.encode(base)
        except UsageError:
            continue
        found = set()
        for stage in range(len(space.scaling_stages)):
            for scaling in space.scalings(stage):
                arch = space.decode(genotype, scaling)
                if arch in scores and arch not in found:
                    found.add(arch)
                    multipliers = (scaling.depth, scaling.width, scaling.resolution)
                    score = scores[arch]
                    genes = ''.join(map(str, genotype.genes))
                    yield genes, stage, *multipliers, score.correct, score.total


def main() -> None:
    """Reads the archive and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('work_dirs', type=Path, nargs='+', help='searches of one super-supernet')
    parser.add_argument('out', type=Path, help='CSV file to write')
    args = parser.parse_args()
    space = SearchSpace.from_config(Config.fromfile(CONFIG).space)
    archives = [Archive.open_existing(folder / 'archive') for folder in args.work_dirs]
    scores = {entry.arch: entry.outcome for archive in archives for entry in archive.entries()}
    with args.out.open('w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow(COLUMNS)
        found = sorted(rows(space, scores))
        writer.writerows(found)
    print(f'{args.out}: {len(found)} rows of {len(scores)} networks')


if __name__ == '__main__':
    main()
