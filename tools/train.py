#!/usr/bin/env python
"""Trains the model of a config: a super-supernet, or any network of mmpretrain or mmscale."""

import argparse

from mmscale.errors import UsageError
from mmscale.launch.command_line import (
    ToolParser,
    add_common_arguments,
    add_dataloader_options,
    load_config,
    set_dataloaders,
)
from mmscale.launch.runner import build_runner, run_tool


def parse_args() -> argparse.Namespace:
    """Parses the command line."""
    parser = ToolParser(description=__doc__)
    add_common_arguments(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume from a checkpoint, or from the latest one in the work dir',
    )
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument(
        '--amp', action='store_true', help='mixed precision with float16 and loss scaling (GPU)'
    )
    precision.add_argument(
        '--bf16', action='store_true', help='mixed precision with bfloat16 (GPU or CPU)'
    )
    parser.add_argument('--no-validate', action='store_true', help='no validation while training')
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale the learning rate to the batch size'
    )
    add_dataloader_options(parser)
    return parser.parse_args()


def main() -> None:
    """Builds the runner and trains."""
    args = parse_args()
    config = load_config(args)
    from mmscale.launch.log import run

    if config.get('train_cfg') is None:
        raise UsageError(f'config={args.config} has no train_cfg')
    if args.resume is not None:
        config.resume = True
        config.load_from = None if args.resume == 'auto' else args.resume
    set_dataloaders(config, args)
    if args.no_validate:
        config.val_cfg = config.val_dataloader = config.val_evaluator = None
    if args.amp:
        config.optim_wrapper.type = 'AmpOptimWrapper'
        config.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.bf16:
        config.optim_wrapper.type = 'mmscale.BFloat16OptimWrapper'
    if args.auto_scale_lr:
        if config.get('auto_scale_lr') is None:
            raise UsageError(
                f'--auto-scale-lr: config={args.config} has no auto_scale_lr.base_batch_size'
            )
        config.auto_scale_lr.enable = True
    run(build_runner(config, 'train'), 'train')


if __name__ == '__main__':
    run_tool(main)
