#!/usr/bin/env python
"""Writes what is left of a network: as a search by gradient has found, or pruned here at once."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from mmscale.launch.command_line import (
    ToolParser,
    add_config_options,
    read_checkpoint,
    read_config,
    show,
)
from mmscale.launch.runner import run_tool
from mmscale.quiet import quiet_imports

if TYPE_CHECKING:
    from mmengine.config import Config


def parse_args() -> argparse.Namespace:
    parser = ToolParser(description=__doc__)
    parser.add_argument(
        'config',
        help='config of the search, whose model is a mmscale.DMSModel; with --method that of a '
        'training',
    )
    parser.add_argument('checkpoint', nargs='?', help='checkpoint of the search, or the training')
    parser.add_argument(
        '--method',
        choices=('dms', 'taylor', 'l1'),
        help='prune a trained network that was never searched: dms learns widths and depths by '
        'gradient while the weights rest, taylor drops what the loss depends on least, l1 keeps '
        'the same share of every width',
    )
    parser.add_argument(
        '--keep',
        type=float,
        metavar='SHARE',
        help='with --method: share of the cost that is left (default: 0.5)',
    )
    parser.add_argument(
        '--metric',
        choices=('flops', 'params', 'acts'),
        help='with --method: what --keep is a share of (default: flops)',
    )
    parser.add_argument(
        '--iterations',
        type=int,
        metavar='N',
        help='with --method dms: iterations of the search (default: 200)',
    )
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
    settings = ('keep', 'metric', 'iterations')
    needless = [f'--{name}' for name in settings if getattr(args, name) is not None]
    if args.method is None and needless:
        parser.error(f'{", ".join(needless)} only with --method')
    if args.dry and args.method:
        parser.error('--dry writes nothing: leave out --method')
    if not args.dry and (args.checkpoint is None or args.out is None):
        parser.error('a checkpoint and --out are needed, or --dry')
    return args


def prune_trained_network(args: argparse.Namespace, config: Config) -> None:
    """Prunes a network that was never searched."""
    recipe = None if args.recipe is None else read_config(args.recipe)
    with quiet_imports():
        from mmscale.apis.trained_pruning import prune_trained
    given = {
        name: getattr(args, name)
        for name in ('keep', 'metric', 'iterations')
        if getattr(args, name) is not None
    }
    found = prune_trained(
        config,
        args.checkpoint,
        args.out,
        args.method,
        recipe=recipe,
        overwrite=args.overwrite,
        **given,
    )
    show(found, args.json)


def main() -> None:
    args = parse_args()
    if args.dry:
        from mmscale.apis.prunable import find_prunable

        show(find_prunable(args.config, args.cfg_options), args.json)
        return
    config = read_config(args.config, args.cfg_options)
    if args.method is not None:
        prune_trained_network(args, config)
        return
    checkpoint = read_checkpoint(args.checkpoint)
    recipe = None if args.recipe is None else read_config(args.recipe)
    with quiet_imports():
        from mmscale.apis.pruned_files import export_search
        from mmscale.models.checkpoints import weights_of
    state = weights_of(args.checkpoint, checkpoint)
    show(export_search(config, state, args.out, recipe, args.overwrite), args.json)


if __name__ == '__main__':
    run_tool(main)
