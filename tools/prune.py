#!/usr/bin/env python
"""Writes the network that a search by gradient (differentiable model scaling) has found."""

from __future__ import annotations

import argparse
import json

from mmscale.errors import UsageError
from mmscale.launch.command_line import (
    add_config_options,
    read_checkpoint,
    read_config,
)
from mmscale.launch.runner import run_tool
from mmscale.quiet import quiet_imports


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of the search; its model is a mmscale.DMSModel')
    parser.add_argument('checkpoint', help='checkpoint of the search')
    parser.add_argument(
        '--out',
        required=True,
        help='folder to write weights.pth to, arch.json (of an ArchNet alone or in a classifier) '
        'or pruned.json (what stays of any other model), and retrain.py',
    )
    parser.add_argument(
        '--recipe',
        metavar='CONFIG',
        help='config whose data, schedule and model retrain.py inherits (default: that of the '
        'search)',
    )
    parser.add_argument('--overwrite', action='store_true', help='replace an earlier export')
    add_config_options(parser)
    parser.add_argument('--json', action='store_true', help='print one JSON object')
    return parser.parse_args()


def print_report(report: dict) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ('', 'before', 'after', 'share'):
        table.add_column(column, justify='right' if column else 'left')
    for name, before in report['before'].items():
        after = report['after'][name]
        table.add_row(name, f'{before:,}', f'{after:,}', f'{after / before:.1%}')
    console = Console()
    console.print(table)
    budget = report['budget']
    share = budget['value'] / budget['goal'] - 1
    console.print(
        f'budget: {budget["metric"]} {budget["goal"]:,.6g}, the network has {share:+.2%}',
        highlight=False,
    )
    if not budget['ended']:
        console.print('The search has not ended: its last iteration meets the budget.')
    for name, (kept, size) in report['kept'].items():
        if kept < size:
            console.print(f'{name}: {kept} of {size}', highlight=False)
    for setting, width in report['widths'].items():
        console.print(f'{setting}: {width}', highlight=False)
    *files, retrain = report['files']
    console.print(f'\nWrote {", ".join(files)} and {retrain}.', highlight=False, soft_wrap=True)
    console.print(f'To train it: tools/train.py {retrain}', highlight=False, soft_wrap=True)


def main() -> None:
    args = parse_args()
    config = read_config(args.config, args.cfg_options)
    checkpoint = read_checkpoint(args.checkpoint)
    recipe = None if args.recipe is None else read_config(args.recipe)
    with quiet_imports():
        from mmscale.apis.pruning import export_search
    try:
        state = checkpoint.get('state_dict', checkpoint)
        report = export_search(config, state, args.out, recipe, args.overwrite)
    except (ValueError, OSError) as error:
        raise UsageError(error) from error
    if args.json:
        print(json.dumps(report, indent=1))
    else:
        print_report(report)


if __name__ == '__main__':
    run_tool(main)
