#!/usr/bin/env python
"""Compares the pruning of a language model with and without the whole model as its teacher.

``python benchmarks/dms_language_model.py --seeds 3 --out docs/results/dms_language_model.json``

For each seed the small LLaMA of configs/causal_lm is trained, for longer than its config does: a
teacher knows more than what learns from it. A search by gradient then leaves half of its
parameters, and what is left is trained further; both with the text alone and with the whole model
as the teacher. A seed is that of initialisation and of the order of text. Perplexity
is per byte of the files for validation; a difference is that of both with one seed. Seconds are of
the CPU, without the start of Python. What is finished is not done again.
"""

import argparse
import json
import statistics
import time
from dataclasses import asdict
from pathlib import Path

from dms_against_baselines import once
from mmengine.config import Config
from mmengine.runner import Runner
from rich.console import Console
from rich.table import Table

from mmscale.apis.pruned_files import export_search
from mmscale.launch.command_line import read_config, set_environment
from mmscale.launch.runner import build_runner

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
WHOLE, SEARCH, REST = (
    'causal_lm/llama-mini_stdlib.py',
    'dms/dms-llama-mini-distilled_stdlib.py',
    'dms/llama-mini-pruned-distilled_stdlib.py',
)
PLAIN, DISTILLED = 'text alone', 'distilled'
MOMENTS = ('right after', 'trained further')


def prepared(name: str, folder: Path, seed: int, iterations: int, options: dict) -> Config:
    """A config with what all trainings here share; validation is at its end."""
    config = read_config(CONFIGS / name)
    config.merge_from_dict(
        {
            'work_dir': str(folder),
            'experiment_name': '_'.join(folder.parts[-4:]),
            'log_level': 'WARNING',
            'randomness.seed': seed,
            'train_dataloader.sampler.seed': seed,
            'train_cfg.max_iters': iterations,
            'train_cfg.val_interval': iterations,
            'param_scheduler.0.end': min(50, iterations // 3),
            **options,
        }
    )
    return config


def run(config: Config) -> tuple[Runner, dict]:
    """Trains; perplexity at the end and seconds, of which validation is a part."""
    runner = build_runner(config, 'train')
    projected = {}
    if hasattr(runner.model, 'project'):
        project = runner.model.project

        def remembered() -> object:
            projection = project()
            projected.update(asdict(projection))
            return projection

        runner.model.project = remembered
    start = time.process_time()
    runner.train()
    perplexity = runner.message_hub.get_scalar('val/perplexity').current()
    found = {'perplexity': float(perplexity), 'cpu_seconds': time.process_time() - start}
    return runner, {**found, **({'projection': projected} if projected else {})}


def train_whole(folder: Path, seed: int, iterations: int) -> dict:
    """Trains the whole model."""
    options = {'param_scheduler.1.end': iterations}
    return run(prepared(WHOLE, folder, seed, iterations, options))[1]


def learner(is_distilled: bool, checkpoint: Path) -> dict:
    """Options of a model that learns from the text, and perhaps from a teacher."""
    if is_distilled:
        return {'model.model.teacher_checkpoint': str(checkpoint)}
    return {'model.model.type': 'mmscale.CausalLM', 'model.model.teacher_checkpoint': None}


def compare(name: str, seed: int, folder: Path, checkpoint: Path, iterations: int) -> dict:
    """Search and further training in one of both ways."""
    options = learner(name == DISTILLED, checkpoint)

    def build(config_name: str, into: Path, others: dict) -> Config:
        config = prepared(config_name, into, seed, iterations, {**options, **others})
        if name == PLAIN:
            config.model.model.pop('teacher_checkpoint')
        return config

    def search(into: Path) -> dict:
        config = build(
            SEARCH,
            into,
            {
                'model.pretrained': str(checkpoint),
                'model.structure_optimizer': dict(type='Adam', lr=2 / iterations),
            },
        )
        runner, found = run(config)
        report = export_search(config, runner.model.state_dict(), into / 'pruned').to_json()
        return {**found, 'after': report['after'], 'kept': report['kept']}

    def further(into: Path) -> dict:
        pruned = folder / 'search' / 'pruned'
        config = build(
            REST,
            into,
            {
                'model.pruned': str(pruned / 'pruned.json'),
                'load_from': str(pruned / 'weights.pth'),
                'param_scheduler.1.begin': min(50, iterations // 3),
                'param_scheduler.1.end': iterations,
            },
        )
        return run(config)[1]

    return {
        MOMENTS[0]: once(folder / 'search', search),
        MOMENTS[1]: once(folder / 'further', further),
    }


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f'{statistics.mean(values):.3f} ± {deviation:.3f}'


def table_of(rows: list[dict]) -> Table:
    """Perplexities of both ways, and their differences seed by seed."""
    table = Table(title='Half of the parameters of a small LLaMA: perplexity per byte')
    for column in ('', *MOMENTS):
        table.add_column(column, justify='right' if column else 'left')
    whole = [row['whole']['perplexity'] for row in rows]
    table.add_row('whole', spread(whole), '')
    values = {
        name: [[row[name][moment]['perplexity'] for row in rows] for moment in MOMENTS]
        for name in (PLAIN, DISTILLED)
    }
    for name, found in values.items():
        table.add_row(name, *map(spread, found))
    differences = [
        [one - other for one, other in zip(distilled, plain, strict=True)]
        for plain, distilled in zip(values[PLAIN], values[DISTILLED], strict=True)
    ]
    table.add_row('difference', *map(spread, differences))
    return table


def main() -> None:
    """Runs both ways for every seed, prints the table and writes the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, default=3, help='number of seeds (default: 3)')
    parser.add_argument(
        '--iterations',
        type=int,
        default=150,
        help='of a search, and of the training after it (default: %(default)s)',
    )
    parser.add_argument(
        '--whole-iterations',
        type=int,
        default=1000,
        help='of the whole model before that (default: %(default)s)',
    )
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/dms_language_model'))
    parser.add_argument('--out', type=Path, help='JSON file of the rows')
    args = parser.parse_args()
    if args.seeds < 1:
        parser.error(f'--seeds {args.seeds} must be 1 or more')
    for option, iterations in (
        ('iterations', args.iterations),
        ('whole-iterations', args.whole_iterations),
    ):
        if iterations < 3:
            parser.error(f'--{option} {iterations} must be 3 or more')
    rows = []
    for seed in range(args.seeds):
        folder = args.work_dir.resolve() / f'whole_{args.whole_iterations}' / f'seed{seed}'
        whole = once(
            folder / 'whole',
            lambda into, seed=seed: train_whole(into, seed, args.whole_iterations),
        )
        row = {'whole': whole}
        checkpoint = folder / 'whole' / f'iter_{args.whole_iterations}.pth'
        for name in (PLAIN, DISTILLED):
            into = folder / f'{name.replace(" ", "_")}_{args.iterations}'
            row[name] = compare(name, seed, into, checkpoint, args.iterations)
            found = ', '.join(f'{key} {row[name][key]["perplexity"]:.3f}' for key in MOMENTS)
            print(f'seed {seed}, {name}: {found}', flush=True)
        rows.append(row)
    Console(width=100).print(table_of(rows))
    if args.out is not None:
        settings = {'whole_iterations': args.whole_iterations, 'iterations': args.iterations}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        found = {'settings': settings, 'seeds': rows}
        args.out.write_text(json.dumps(found, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
    set_environment()
    main()
