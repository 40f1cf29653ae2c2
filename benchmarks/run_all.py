#!/usr/bin/env python
"""Runs every benchmark of speed, one after the other: ``make bench``.

    python benchmarks/run_all.py [super_net_step peers ...] [--ofa CHECKOUT]

Sized for less than 15 minutes on two idle cores in all; each alone, with more rounds, says
more. What they print are ratios as median of pairs and quartiles, with the environment.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).parent
# Scripts and their arguments; some run several times.
COMMANDS = (
    'super_net_step.py --rounds 7 --draws changing',
    'super_net_step.py --rounds 7 --draws changing --space digits --mode both_sides sandwich',
    'peers.py --rounds 5',
    'evaluation.py --rounds 3 --modes memory',
    'search_overhead.py',
    'retraining_step.py --rounds 3',
    'dms_step_time.py --rounds 3',
    'data_pipeline.py --rounds 3',
    'costs.py --sample 0',
    'cost_table.py --rounds 3',
    'archive.py --entries 100000',
    'growth.py',
    'ceilings.py --rounds 3',
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = sorted({command.partition('.py')[0] for command in COMMANDS})
    parser.add_argument('only', nargs='*', metavar='NAME', help=f'of {", ".join(names)}')
    parser.add_argument('--ofa', metavar='CHECKOUT', help='of Once-for-All, for peers.py')
    args = parser.parse_args()
    for name in args.only:
        if name not in names:
            parser.error(f'{name} is none of {", ".join(names)}')
    failed = 0
    begin = time.perf_counter()
    for command in COMMANDS:
        script, *words = command.split()
        name = script.removesuffix('.py')
        if args.only and name not in args.only:
            continue
        if name == 'peers' and args.ofa:
            words += ['--ofa', args.ofa]
        print(f'\n$ python benchmarks/{shlex.join([script, *words])}', flush=True)
        start = time.perf_counter()
        code = subprocess.run([sys.executable, str(FOLDER / script), *words]).returncode
        failed += code != 0
        end = '' if code == 0 else f', FAILED with exit code {code}'
        print(f'({time.perf_counter() - start:.0f} seconds{end})', flush=True)
    print(f'\n{time.perf_counter() - begin:.0f} seconds in all, {failed} failed')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
