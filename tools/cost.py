#!/usr/bin/env python
"""Counts and times a network: ``tools/cost.py RegNetY-4.0GF``, an Arch's file, or a config."""

import argparse
import json
import warnings

from mmscale.apis.cost import cost_report
from mmscale.arch import preset_names
from mmscale.cost import CONVENTIONS, LatencySetting
from mmscale.errors import UsageError
from mmscale.launch.command_line import add_config_options
from mmscale.launch.runner import run_tool

_CONVENTIONS = {
    'mmscale': 'multiply-adds of convolutions, linear layers and attention; outputs of the same',
    'pycls': 'as mmscale, and bias additions are flops, outputs of max-pools are acts',
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Count the flops (multiply-adds), params and acts of a network; time it.',
        epilog=f'presets: {", ".join(preset_names())}',
    )
    parser.add_argument(
        'source', help="a preset's name, an Arch's JSON file, or a config (.py) with a model"
    )
    parser.add_argument('--resolution', type=int, help='side of the input, in pixels')
    parser.add_argument(
        '--convention',
        choices=CONVENTIONS,
        default='mmscale',
        help='pycls adds bias additions to flops and max-pool outputs to acts',
    )
    parser.add_argument(
        '--batch', type=int, default=1, help='images that latency and memory are of'
    )
    parser.add_argument(
        '--latency', choices=('cpu', 'cuda'), help='time a forward pass on this device'
    )
    parser.add_argument(
        '--memory', action='store_true', help='count memory also of a preset or an Arch'
    )
    add_config_options(parser)
    parser.add_argument('--json', action='store_true', help='print one JSON object')
    return parser.parse_args()


def print_report(report: dict) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    side = report['resolution']
    size = f'{side} px' if isinstance(side, int) else f'{side[0]} x {side[1]} px'
    title = f'{report["name"]} at {size}, convention {report["convention"]}'
    # Without vertical lines, 14 digits fit into the 80 columns of a pipe.
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column('part')
    shapes = [key for key in ('blocks', 'channels', 'size') if key in report['parts'][0]]
    for column in (*shapes, 'flops', 'params', 'acts'):
        table.add_column(column, justify='right', overflow='fold')
    for part in report['parts']:
        table.add_row(
            part['name'],
            *(str(part[key] or '') for key in shapes),
            *(f'{part[key]:,}' for key in ('flops', 'params', 'acts')),
        )
    table.add_section()
    totals = (f'{report[key]:,}' for key in ('flops', 'params', 'acts'))
    table.add_row('total', *[''] * len(shapes), *totals, style='bold')
    console = Console()
    console.print(table)
    lines = [f'{report["convention"]}: {_CONVENTIONS[report["convention"]]}.']
    if 'memory' in report:
        memory = report['memory']
        kept = memory['activation_bytes_training']
        training = 'not trainable so' if kept is None else f'{kept / 2**20:,.1f} MiB kept to train'
        lines.append(
            f'Activation memory, batch {memory["batch"]}: '
            f'{memory["peak_bytes_inference"] / 2**20:,.1f} MiB at the peak of inference, '
            f'{training}.'
        )
    if 'latency' in report:
        latency = report['latency']
        setting = LatencySetting(**latency['setting'])
        lines.append(
            f'Latency: {latency["median_ms"]:,.2f} ms (half of {latency["repeats"]} runs within '
            f'{latency["low_ms"]:,.2f}-{latency["high_ms"]:,.2f}), {setting}.'
        )
    if 'mmengine' in report:
        lines.append(f'{report["mmengine"]["text"]}.')
        lines.append(
            'Tools that count additions apart (torch.utils.flop_counter) say twice as much.'
        )
    if report.get('uncounted'):
        lines.append(f'Not counted: {", ".join(report["uncounted"])}.')
    for line in lines:
        console.print(line, highlight=False)


def main() -> None:
    args = parse_args()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='.* is not counted')  # the report says it
            report = cost_report(
                args.source,
                args.resolution,
                args.convention,
                args.batch,
                args.latency,
                args.memory,
                args.cfg_options,
            )
    except (ValueError, OSError) as error:
        raise UsageError(error) from error
    if args.json:
        print(json.dumps(report, indent=1))
    else:
        print_report(report)


if __name__ == '__main__':
    run_tool(main)
