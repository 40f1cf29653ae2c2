#!/usr/bin/env python
"""Writes the network that a search by gradient (differentiable model scaling) has found."""

from __future__ import annotations

import argparse

from mmscale.launch.command_line import (
    ToolParser,
    add_config_options,
    read_checkpoint,
    read_config,
    show,
)
from mmscale.launch.runner import run_tool
from mmscale.quiet import quiet_imports


def parse_args() -> argparse.Namespace:
    parser = ToolParser(description=__doc__)
    parser.add_argument('config', help='config of the search; its model is a mmscale.DMSModel')
    parser.add_argument('checkpoint', nargs='?', help='checkpoint of the search')
    parser.add_argument(
        '--dry',
        action='store_true',
        help='only say what of the model of any config can go; needs no checkpoint and no --out',
    )
    parser.add_argument(
        '--out',
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
    args = parser.parse_args()
    given = [name for name in ('checkpoint', 'out', 'recipe') if getattr(args, name) is not None]
    if args.dry and given:
        parser.error(f'--dry writes nothing: leave out {", ".join(given)}')
    if not args.dry and (args.checkpoint is None or args.out is None):
        parser.error('a checkpoint and --out are needed, or --dry')
    return args


def main() -> None:
    args = parse_args()
    if args.dry:
        from mmscale.apis.prunable import find_prunable

        show(find_prunable(args.config, args.cfg_options), args.json)
        return
    config = read_config(args.config, args.cfg_options)
    checkpoint = read_checkpoint(args.checkpoint)
    recipe = None if args.recipe is None else read_config(args.recipe)
    with quiet_imports():
        from mmscale.apis.pruning import export_search
        from mmscale.models.checkpoints import weights_of
    state = weights_of(args.checkpoint, checkpoint)
    show(export_search(config, state, args.out, recipe, args.overwrite), args.json)


if __name__ == '__main__':
    run_tool(main)
