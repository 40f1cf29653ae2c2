#!/usr/bin/env python
"""Trains detectors on real handwriting, from random weights and from a classifier's, in minutes.

Makes the data, trains the classifier of a searched network, then RetinaNet around that network
from random weights and from the classifier's, tests both by COCO mAP and draws what the better
one finds. What is finished is not done again: after an interruption, the same command goes on.
"""

import argparse
import io
import json
import os
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from rich.table import Table

from mmscale.apis.reports.run_files import json_lines
from mmscale.errors import UsageError
from mmscale.files import write_json, write_text
from mmscale.launch.command_line import read_config, set_environment
from mmscale.launch.runner import build_runner
from mmscale.launch.steps import console, heading, is_whole, run_logged, run_steps, take_work_dir
from mmscale.untrusted import read_text

ROOT = Path(__file__).resolve().parents[1]
CLASSIFIER = 'configs/scalenet/digits-s2.py'
DETECTORS = {
    'random weights': 'configs/det/retinanet_digits-s2_fpn_digits.py',
    "the classifier's weights": 'configs/det/retinanet_digits-s2-pre_fpn_digits.py',
}
METRICS = {'mAP': 'bbox_mAP', 'mAP 50': 'bbox_mAP_50', 'mAP 75': 'bbox_mAP_75'}
# Of the picture: images across and down, enlargement, least score of a box.
GRID, ENLARGEMENT, LEAST_SCORE = (4, 2), 3, 0.4


def parse_args() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of everything (default: 0)')
    parser.add_argument(
        '--work-dir', type=Path, default=Path('work_dirs/detection_quickstart'),
        help='default: %(default)s',
    )  # fmt: skip
    parser.add_argument(
        '--smoke',
        action='store_true',
        help='a minute of everything, to see whether it runs; the numbers mean nothing',
    )
    args = parser.parse_args()
    if args.seed < 0:
        parser.error(f'--seed {args.seed} must be 0 or more')
    return args


def train(config: str, work_dir: Path, options: dict[str, Any], lock: int) -> Path:
    """Trains by tools/train.py, which holds the lock, unless it is done.

    Returns:
        The last checkpoint.

    Raises:
        UsageError: The work dir holds a run of other settings.
        SystemExit: The tool failed.
    """
    iterations = (
        options.get('train_cfg.max_iters') or read_config(ROOT / config).train_cfg.max_iters
    )
    checkpoint = work_dir / f'iter_{iterations}.pth'
    settings = work_dir / 'settings.json'
    text = json.dumps({'config': config, **options})
    if settings.exists() and read_text(settings) != text:
        raise UsageError(
            f'{work_dir} holds a run of other settings: take another --work-dir or remove it'
        )
    # The test comes after the last checkpoint.
    if is_whole(checkpoint) and scores(work_dir):
        return checkpoint
    work_dir.mkdir(parents=True, exist_ok=True)
    write_text(settings, text)
    command = [sys.executable, str(ROOT / 'tools' / 'train.py'), str(ROOT / config)]
    command += [] if is_whole(checkpoint) else ['--resume']
    command += ['--work-dir', str(work_dir), '--cfg-options']
    command += [f'{key}={value}' for key, value in options.items()]
    run_logged(command, ROOT, work_dir, lock)
    return checkpoint


def scores(work_dir: Path) -> dict[str, float]:
    """What the last test of a training measured; empty if there was none."""
    found = {}
    for file in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in json_lines(file):
            if line and ('coco/bbox_mAP' in line or 'accuracy/top1' in line):
                found = line
    return found


def draw(config: str, checkpoint: Path, out: Path) -> None:
    """Draws what a detector finds on the first test images."""
    import cv2
    import numpy as np

    options = [f'load_from={checkpoint}', f'work_dir={out.parent / "drawing"}', 'log_level=ERROR']
    with redirect_stdout(io.StringIO()):
        runner = build_runner(read_config(ROOT / config, options), 'test')
        runner.load_or_resume()
    model = runner.model.eval()
    columns, rows = GRID
    batch = next(iter(runner.test_dataloader))
    batch = {key: values[: columns * rows] for key, values in batch.items()}
    visualizer = runner.visualizer
    visualizer.dataset_meta = {**runner.test_dataloader.dataset.metainfo, 'palette': 'random'}
    drawn = []
    for sample in model.test_step(batch):
        image = cv2.imread(sample.img_path)
        image = cv2.resize(image, None, fx=ENLARGEMENT, fy=ENLARGEMENT)
        sample.pred_instances.bboxes *= ENLARGEMENT
        visualizer.add_datasample(
            'test', image, sample, draw_gt=False, pred_score_thr=LEAST_SCORE, out_file=None
        )
        drawn.append(visualizer.get_image())
    grid = [np.hstack(drawn[i * columns : (i + 1) * columns]) for i in range(rows)]
    if not cv2.imwrite(str(out), np.vstack(grid)):
        raise OSError(f'{out} cannot be written')


def main() -> None:
    """Runs all steps and shows what came out."""
    args = parse_args()
    work_dir = args.work_dir
    lock = take_work_dir(work_dir)
    set_environment()
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    start = time.monotonic()
    common = {'randomness.seed': args.seed, 'train_dataloader.sampler.seed': args.seed}
    if args.smoke:
        common |= {'train_cfg.max_iters': 10, 'train_cfg.val_interval': 10}

    heading('1. A classifier of the searched network, for its weights', start)
    classifier = train(CLASSIFIER, work_dir / 'classifier', common, lock)

    table = Table('backbone from', *METRICS, title='RetinaNet on test images, %')
    rows, checkpoints = {}, {}
    for number, (name, config) in enumerate(DETECTORS.items()):
        heading(f'{number + 2}. RetinaNet, its backbone from {name}', start)
        options = {**common, 'val_dataloader.dataset.split': 'test'}
        if number:
            options['model.backbone.init_cfg.checkpoint'] = str(classifier)
        folder = work_dir / ('random' if number == 0 else 'pretrained')
        checkpoints[name] = train(config, folder, options, lock)
        rows[name] = {key: scores(folder)[f'coco/{key}'] for key in METRICS.values()}
        table.add_row(name, *(f'{100 * value:.1f}' for value in rows[name].values()))

    best = max(rows, key=lambda name: rows[name]['bbox_mAP'])
    draw(DETECTORS['random weights'], checkpoints[best], work_dir / 'detections.png')
    write_json(work_dir / 'scores.json', rows)
    console.print()
    console.print(table)
    heading(f'Done: {work_dir}/scores.json and detections.png', start)


if __name__ == '__main__':
    run_steps(main)
