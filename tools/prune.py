#!/usr/bin/env python
"""Writes the network that a search by gradient (differentiable model scaling) has found."""

from __future__ import annotations

import argparse
import json

from mmscale.apis.launch import (
    UsageError,
    add_config_options,
    load_config,
    read_checkpoint,
    run_tool,
)
from mmscale.quiet import quiet_imports


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of the search; its model is a mmscale.DMSModel')
    parser.add_argument('checkpoint', help='checkpoint of the search')
    parser.add_argument(
        '--out',
        required=True,
        help='folder to write weights.pth to, and arch.json (the network of an ArchNet) or '
        'pruned.json (what stays of any other)',
    )
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
    for name, (kept, size) in report['kept'].items():
        if kept < size:
            console.print(f'{name}: {kept} of {size}', highlight=False)
    described, weights = report['files']
    console.print(f'\nWrote {described} and {weights}.', highlight=False, soft_wrap=True)
    if described.endswith('arch.json'):
        hint = f"backbone=dict(arch='{described}')"
    else:
        hint = f"model=dict(type='mmscale.PrunedModel', pruned='{described}', model=dict(...))"
    console.print(f'To train it: {hint}', highlight=False, soft_wrap=True, markup=False)


def main() -> None:
    args = parse_args()
    args.work_dir, args.launcher, args.local_rank = None, 'none', 0
    config = load_config(args)
    checkpoint = read_checkpoint(args.checkpoint)
    with quiet_imports():
        from mmscale.apis.prune import export_search
    try:
        report = export_search(config, checkpoint.get('state_dict', checkpoint), args.out)
    except (ValueError, OSError) as error:
        raise UsageError(error) from error
    if args.json:
        print(json.dumps(report, indent=1))
    else:
        print_report(report)


if __name__ == '__main__':
    run_tool(main)
