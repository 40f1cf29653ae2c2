#!/usr/bin/env python
"""Counts flops, params and acts of a network: ``tools/cost.py scalenet-s1 --json``."""

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

from mmscale.arch import get_arch, preset_name, preset_names
from mmscale.cost import CONVENTIONS, count, count_parts


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Count the flops (multiply-adds), params and acts of a network.',
        epilog=f'presets: {", ".join(preset_names())}',
    )
    parser.add_argument('arch', help="a preset's name or an Arch's JSON file")
    parser.add_argument('--resolution', type=int, help='side of the input, in pixels')
    parser.add_argument(
        '--convention',
        choices=CONVENTIONS,
        default='mmscale',
        help='pycls adds bias additions to flops and max-pool outputs to acts',
    )
    parser.add_argument('--json', action='store_true', help='print one JSON object')
    return parser.parse_args()


def print_table(report: dict) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    title = f'{report["name"]} at {report["resolution"]} px, convention {report["convention"]}'
    # Without vertical lines, 14 digits fit into the 80 columns of a pipe.
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column('part')
    for column in ('blocks', 'channels', 'size', 'flops', 'params', 'acts'):
        table.add_column(column, justify='right', overflow='fold')
    for part in report['parts']:
        table.add_row(
            part['name'],
            str(part['blocks'] or ''),
            str(part['channels']),
            str(part['size']),
            *(f'{part[key]:,}' for key in ('flops', 'params', 'acts')),
        )
    table.add_section()
    totals = (f'{report[key]:,}' for key in ('flops', 'params', 'acts'))
    table.add_row('total', *[''] * 3, *totals, style='bold')
    Console().print(table)


def main() -> int:
    args = parse_args()
    try:
        arch = get_arch(args.arch)
        if args.resolution is not None:
            arch = replace(arch, resolution=args.resolution)
    except (ValueError, OSError) as error:
        print(f'cost.py: {error}', file=sys.stderr)
        return 2
    preset = preset_name(args.arch)
    parts = []
    for part in count_parts(arch, args.convention):
        row = asdict(part)
        cost = row.pop('cost')
        parts.append({**row, **cost})
    report = {
        'name': preset or Path(args.arch).stem,
        'resolution': arch.resolution,
        **asdict(count(arch, args.convention)),
        'convention': args.convention,
        'parts': parts,
    }
    if args.json:
        print(json.dumps(report, indent=1))
    else:
        print_table(report)
    return 0


if __name__ == '__main__':
    sys.exit(main())
