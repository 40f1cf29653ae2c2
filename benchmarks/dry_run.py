#!/usr/bin/env python
"""Compares a config's search with random search on the analytic score, over several seeds.

``python benchmarks/dry_run.py configs/scalenet/search-mcea_in1k.py --cfg-options
test_cfg.search.population=16 test_cfg.search.generations=10 test_cfg.search.rounds=2``
"""

import argparse
import io
import tempfile
from contextlib import redirect_stdout

from mmscale.apis.search import dry_run
from mmscale.launch.command_line import add_common_arguments, load_config
from mmscale.launch.runner import run_tool


def main() -> None:
    """Runs dry once per seed, each with its own hidden family, and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_common_arguments(parser)
    parser.add_argument('--seeds', type=int, default=10, help='number of seeds (default: 10)')
    args = parser.parse_args()
    rows = []
    print('seed  search  random  evaluations  seconds')
    for seed in range(args.seeds):
        config = load_config(args)
        config.test_cfg.seed = seed
        with tempfile.TemporaryDirectory() as config.work_dir, redirect_stdout(io.StringIO()):
            outcome = dry_run(config)
        found, random = float(outcome.result.fitness), float(outcome.random.fitness)
        rows.append((found, random))
        seconds = outcome.seconds + outcome.random_seconds
        evaluations = f'{outcome.result.evaluations:,}'
        print(
            f'{seed:4}  {found:.4f}  {random:.4f}  {evaluations:>11}  {seconds:7.1f}', flush=True
        )
    better = sum(found > random for found, random in rows)
    near = sum(found >= 0.95 for found, _ in rows)
    print(f'better than random: {better} of {len(rows)}; 0.95 or more of the optimum: {near}')


if __name__ == '__main__':
    run_tool(main)
