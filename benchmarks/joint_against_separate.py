#!/usr/bin/env python
"""Compares the joint search of the digit data with its baselines, on one super-supernet.

``python benchmarks/joint_against_separate.py work_dirs/supernet_digits/iter_1000.pth --seeds 3
--out docs/results/joint_against_separate.json``

Every search has an archive of its own, so that evaluations count alike. Seconds are of the CPU, as
other work on the machine would change the clock's. What is finished is not done again.
"""

import argparse
import json
import statistics
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tool_run import run_tool

SEARCHES = ('joint', 'separate', 'random', 'base first', 'then scaling')


def search(config: str, work_dir: Path, options: dict[str, object]) -> dict:
    """Runs tools/search.py unless it has finished; its result and the CPU seconds it took."""
    cost = work_dir / 'cpu_seconds.json'
    if not cost.is_file():
        seconds = run_tool('search.py', f'scalenet/{config}', work_dir, options)
        cost.write_text(json.dumps(seconds), encoding='utf-8')
    result = json.loads((work_dir / 'result.json').read_text(encoding='utf-8'))
    return {
        'fitness': result['fitness'],
        'evaluations': result['evaluations'],
        'cpu_seconds': round(json.loads(cost.read_text(encoding='utf-8')), 1),
        'scores': [
            member['score']['correct'] / member['score']['total']
            for member in result['scaling_stages']
        ],
    }


def compare(checkpoint: Path, seed: int, work_dir: Path) -> dict[str, dict]:
    """All searches of one seed."""
    common = {'load_from': checkpoint, 'test_cfg.seed': seed}
    rows = {
        'joint': search('search-mcea_digits.py', work_dir / 'joint', common),
        'separate': search('search-separate_digits.py', work_dir / 'separate', common),
    }
    evaluations = {**common, 'test_cfg.search.evaluations': rows['joint']['evaluations']}
    rows['random'] = search('search-random_digits.py', work_dir / 'random', evaluations)
    rows['base first'] = search('search-evolution_digits.py', work_dir / 'base', common)
    base = work_dir / 'base' / 'archs' / 'scaling_stage_0.json'
    rows['then scaling'] = search(
        'search-scaling_digits.py',
        work_dir / 'scaling',
        {'load_from': checkpoint, 'test_cfg.search.base': base},
    )
    return rows


def spread(values: list[float], decimals: int) -> str:
    """Mean and standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f'{statistics.mean(values):.{decimals}f} ± {deviation:.{decimals}f}'


def main() -> None:
    """Runs every search for every seed, prints the table and writes the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('checkpoint', type=Path, help='super-supernet of supernet_digits.py')
    parser.add_argument('--seeds', type=int, default=3, help='number of seeds (default: 3)')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/joint_against_separate'))
    parser.add_argument('--out', type=Path, help='JSON file of the rows')
    args = parser.parse_args()
    if not args.checkpoint.is_file():
        parser.error(f'checkpoint={args.checkpoint} is not a file')
    if args.seeds < 1:
        parser.error(f'--seeds {args.seeds} must be 1 or more')
    checkpoint = args.checkpoint.resolve()
    rows = [compare(checkpoint, s, args.work_dir / f'seed{s}') for s in range(args.seeds)]
    table = Table(title=f'{args.seeds} seeds of the search, one super-supernet: mean ± deviation')
    for column in ('search', 'fitness', 'evaluations', 'CPU seconds', 'to joint'):
        table.add_column(column, justify='left' if column == 'search' else 'right')
    for name in SEARCHES:
        of_seeds = [row[name] for row in rows]
        ratios = [row[name]['evaluations'] / row['joint']['evaluations'] for row in rows]
        table.add_row(
            name,
            spread([row['fitness'] for row in of_seeds], 4),
            spread([row['evaluations'] for row in of_seeds], 0),
            spread([row['cpu_seconds'] for row in of_seeds], 0),
            f'{statistics.mean(ratios):.2f} x evaluations',
        )
    Console().print(table)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({'seeds': rows}, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
