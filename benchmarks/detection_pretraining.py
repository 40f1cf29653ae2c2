#!/usr/bin/env python
"""Compares a detector whose backbone starts from a search's weights with one from random weights.

``python benchmarks/detection_pretraining.py --seeds 3
--out docs/results/detection_pretraining.json``

RetinaNet around one searched network is trained on the digit data for equally many iterations,
with the same images in the same order, from the weights that the search left and from random
ones; the mAP is that of the test images, by mmdet's CocoMetric. Before it come
``python tools/train.py configs/scalenet/supernet_digits.py`` and
``python tools/search.py configs/scalenet/search-mcea_digits.py``. Seconds are of the CPU, for
training and testing. What is finished is not done again.
"""

import argparse
import json
import statistics
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tool_run import run_tool

STARTS = {
    'random weights': 'retinanet_digits-s2_fpn_digits.py',
    "the search's weights": 'retinanet_digits-s2-pre_fpn_digits.py',
}
METRICS = ('bbox_mAP', 'bbox_mAP_50', 'bbox_mAP_75')


def train(config: str, work_dir: Path, options: dict[str, object]) -> dict:
    """Trains and tests unless it is done; mAPs and the CPU seconds it took."""
    file = work_dir / 'result.json'
    if file.is_file():
        result = json.loads(file.read_text(encoding='utf-8'))
        if result['options'] == options:
            return result
    seconds = run_tool('train.py', f'det/{config}', work_dir, options)
    # One line of the last validation, in the newest of the folders that runs have by their time.
    scalars = sorted(work_dir.glob('*/vis_data/scalars.json'))[-1]
    lines = [json.loads(line) for line in scalars.read_text(encoding='utf-8').splitlines()]
    last = [line for line in lines if 'coco/bbox_mAP' in line][-1]
    result = {
        'options': options,
        **{metric: last[f'coco/{metric}'] for metric in METRICS},
        'cpu_seconds': round(seconds, 1),
    }
    file.write_text(json.dumps(result), encoding='utf-8')
    return result


def main() -> None:
    """Trains all, shows a table, writes the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--iterations', type=int, default=150)
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/detection_pretraining'))
    parser.add_argument('--out', type=Path, required=True, help='JSON file for the numbers')
    args = parser.parse_args()

    runs: dict[str, list[dict]] = {start: [] for start in STARTS}
    for seed in range(args.seeds):
        options = {
            'randomness.seed': seed,
            'train_dataloader.sampler.seed': seed,
            'train_cfg.max_iters': args.iterations,
            'train_cfg.val_interval': args.iterations,
            'param_scheduler.1.end': args.iterations,
            'val_dataloader.dataset.split': 'test',
        }
        for number, (start, config) in enumerate(STARTS.items()):
            work_dir = args.work_dir / f'start{number}_seed{seed}'
            runs[start].append({'seed': seed, **train(config, work_dir, options)})

    table = Table('backbone from', 'mAP', 'mAP 50', 'mAP 75', 'CPU seconds')
    summary = {}
    for start, found in runs.items():
        columns = {metric: [100 * run[metric] for run in found] for metric in METRICS}
        columns['cpu_seconds'] = [run['cpu_seconds'] for run in found]
        summary[start] = {
            key: {
                'mean': round(statistics.mean(values), 2),
                'deviation': round(statistics.stdev(values), 2) if len(values) > 1 else None,
            }
            for key, values in columns.items()
        }
        table.add_row(
            start,
            *(
                f'{value["mean"]:.1f}'
                + ('' if value['deviation'] is None else f' ± {value["deviation"]:.1f}')
                for value in summary[start].values()
            ),
        )
    Console().print(table)
    command = ['python', 'benchmarks/detection_pretraining.py']
    command += ['--seeds', str(args.seeds), '--iterations', str(args.iterations)]
    args.out.write_text(
        json.dumps(
            {
                'command': ' '.join([*command, '--out', str(args.out)]),
                'percent': summary,
                'runs': runs,
            },
            indent=1,
        )
        + '\n',
        encoding='utf-8',
    )


if __name__ == '__main__':
    main()
