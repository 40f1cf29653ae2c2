#!/usr/bin/env python
"""Counts and times a network: ``tools/cost.py RegNetY-4.0GF``, an Arch's file, or a config."""

import argparse
import warnings

from mmscale.arch import preset_names
from mmscale.cost import CONVENTIONS
from mmscale.launch.command_line import ToolParser, add_config_options, show
from mmscale.launch.runner import run_tool


def parse_args() -> argparse.Namespace:
    parser = ToolParser(
        description='Count the flops (multiply-adds), params and acts of a network; time it.',
        epilog=f'presets: {", ".join(preset_names())}',
    )
    parser.add_argument(
        'source',
        help="a preset's name, an Arch's JSON file, a config (.py), timm:NAME, "
        'mmpretrain::CONFIG, or the result.json of a search',
    )
    parser.add_argument('--resolution', type=int, help='side of a square image, in pixels')
    parser.add_argument(
        '--shape',
        nargs=2,
        type=int,
        metavar=('H', 'W'),
        help="height and width of the image (default: what the network's own test pipeline makes)",
    )
    parser.add_argument(
        '--scaling-stage', type=int, metavar='J',
        help="which network of a search's result (default: the base model)",
    )  # fmt: skip
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
        '--memory',
        action='store_true',
        help='count memory also of an Arch and of a detector that needs samples (minutes)',
    )
    parser.add_argument(
        '--compare',
        action='store_true',
        help="say what MMEngine's FlopAnalyzer counts, and why (a config's model is really run)",
    )
    add_config_options(parser)
    parser.add_argument('--json', action='store_true', help='print one JSON object')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from mmscale.apis.cost import get_cost

    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='.* is not counted')  # the table says it
        cost = get_cost(
            args.source,
            args.resolution,
            args.convention,
            args.batch,
            args.latency,
            args.memory,
            args.cfg_options,
            args.shape,
            args.compare,
            args.scaling_stage,
        )
    show(cost, args.json)


if __name__ == '__main__':
    run_tool(main)
