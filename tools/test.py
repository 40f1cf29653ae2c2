#!/usr/bin/env python
"""Tests a checkpoint of a config's model on its test data."""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import TYPE_CHECKING

from mmscale.config_parts import innermost_datasets
from mmscale.errors import UsageError
from mmscale.files import open_to_append
from mmscale.launch.command_line import (
    ToolParser,
    add_common_arguments,
    add_dataloader_options,
    load_config,
    set_dataloaders,
)
from mmscale.launch.runner import build_runner, run_tool

if TYPE_CHECKING:
    from mmengine.config import Config

PREDICTIONS = ('.pkl', '.pickle')
METRICS = ('.json', '.yaml', '.yml', *PREDICTIONS)

# How the hook that draws predictions is told to, and what merges those of augmented images, by
# the code base that a config is of.
DRAWING = {
    'mmpretrain': ('mmpretrain.VisualizationHook', 'enable', 'out_dir'),
    'mmdet': ('mmdet.DetVisualizationHook', 'draw', 'test_out_dir'),
}
TTA_MODELS = {
    'mmpretrain': dict(type='AverageClsScoreTTA'),
    'mmdet': dict(
        type='DetTTAModel',
        tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
    ),
}


def parse_args() -> argparse.Namespace:
    """Parses the command line."""
    parser = ToolParser(description=__doc__)
    add_common_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--out',
        metavar='FILE',
        help=f'file to write the predictions (.pkl) or the metrics ({" ".join(METRICS)}) to',
    )
    parser.add_argument(
        '--out-item', choices=('pred', 'metrics'), help='what --out writes (default: pred)'
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    parser.add_argument(
        '--tta',
        action='store_true',
        help="test-time augmentation: the config's tta_model and tta_pipeline, or those of images "
        'and their mirror images',
    )
    parser.add_argument(
        '--show-dir',
        metavar='DIR',
        help='folder to draw predictions to (of a detector: inside the work dir)',
    )
    parser.add_argument(
        '--interval',
        type=int,
        default=1,
        metavar='N',
        help='draw every N-th image (of a classifier; default: 1)',
    )
    add_dataloader_options(parser)
    args = parser.parse_args()
    if args.out_item is not None and args.out is None:
        parser.error('--out-item needs --out')
    if args.out is not None:
        allowed = METRICS if args.out_item == 'metrics' else PREDICTIONS
        if Path(args.out).suffix not in allowed:
            parser.error(f'--out {args.out}: must end with {" or ".join(allowed)}')
        if Path(args.out).exists() or Path(args.out).is_symlink():
            # MMEngine writes into what is there.
            open_to_append(args.out).close()
    if args.interval < 1:
        parser.error(f'--interval {args.interval}: must be at least 1')
    return args


def scope_of(config: Config, option: str) -> str:
    """The code base that a config is of.

    Raises:
        UsageError: It is none that the option is for.
    """
    scope = config.get('default_scope')
    if scope not in DRAWING:
        raise UsageError(f'{option}: default_scope={scope} must be {" or ".join(DRAWING)}')
    return scope


def draw_predictions(config: Config, args: argparse.Namespace) -> None:
    """Lets the hook of the config's code base draw."""
    scope = scope_of(config, '--show-dir')
    kind, switch, folder = DRAWING[scope]
    hook = {'type': kind, **(config.setdefault('default_hooks', {}).get('visualization') or {})}
    hook.update({switch: True, folder: args.show_dir})
    if scope == 'mmpretrain':
        if args.tta:
            raise UsageError('--show-dir cannot draw the augmented images of --tta')
        hook['interval'] = args.interval
    config.default_hooks['visualization'] = hook


def mirrored(pipeline: list) -> list:
    """The pipeline of images and their mirror images."""
    *pipeline, pack = copy.deepcopy(pipeline)
    if 'meta_keys' in pack:
        pack.meta_keys = (*pack.meta_keys, 'flip', 'flip_direction')
    flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
    return [*pipeline, dict(type='TestTimeAug', transforms=[flips, [pack]])]


def augment(config: Config) -> None:
    """Puts test-time augmentation around the model and into the test pipelines."""
    model = config.get('tta_model') or TTA_MODELS[scope_of(config, '--tta')]
    for dataset in innermost_datasets(config.test_dataloader.dataset):
        if not (config.get('tta_pipeline') or dataset.get('pipeline')):
            raise UsageError('--tta: test_dataloader.dataset has no pipeline to augment')
        dataset.pipeline = config.get('tta_pipeline') or mirrored(dataset.pipeline)
    config.model = dict(**model, module=config.model)


def main() -> None:
    """Builds the runner and tests."""
    args = parse_args()
    config = load_config(args)
    from mmscale.launch.log import run

    for name in ('test_cfg', 'test_dataloader', 'test_evaluator'):
        if config.get(name) is None:
            raise UsageError(f'config={args.config} has no {name}')
    config.load_from = args.checkpoint
    set_dataloaders(config, args)
    if args.amp:
        config.test_cfg.fp16 = True
    if args.show_dir is not None:
        draw_predictions(config, args)
    if args.tta:
        augment(config)
    if args.out is not None and args.out_item != 'metrics':
        evaluator = config.test_evaluator
        evaluators = list(evaluator) if isinstance(evaluator, (list, tuple)) else [evaluator]
        config.test_evaluator = [*evaluators, dict(type='DumpResults', out_file_path=args.out)]
    metrics = run(build_runner(config, 'test'), 'test')
    if args.out_item == 'metrics':
        from mmengine import dump
        from mmengine.dist import is_main_process

        if is_main_process():
            Path(args.out).parent.mkdir(parents=True, exist_ok=True)
            dump(metrics, args.out)


if __name__ == '__main__':
    run_tool(main)
