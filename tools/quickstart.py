#!/usr/bin/env python
"""Searches, trains and compares families of networks on real handwriting, in minutes of 2 cores.

Trains a super-supernet, searches base model and scaling strategy in it, then trains and tests the
networks of several families: the searched one, the best of equally many random ones, uniform
compound scaling of the searched base model, and random ones that nothing has chosen. Each of the
first three is trained three times, from random weights and from those of the search. What is
finished is not done again: after an interruption, the same command goes on.
"""

import argparse
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mmscale.apis.compare.families import (
    DRAWN,
    FAMILIES,
    STARTS,
    collect,
    plot,
    ranking,
    ranking_table,
    table,
)
from mmscale.apis.compare.retrain import RetrainJob, run_jobs
from mmscale.arch import Arch
from mmscale.arch.checks import check_keys, integer
from mmscale.arch.json_files import read_json
from mmscale.errors import UsageError
from mmscale.files import write_json, write_text
from mmscale.launch.command_line import set_environment
from mmscale.launch.steps import console, heading, is_whole, run_logged, run_steps, take_work_dir
from mmscale.untrusted import read_text

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / 'configs' / 'scalenet'
SCALING_STAGES = 5
# Sized for 20 minutes in all on two slow cores.
DRAWN_FAMILIES = 3
TRAININGS = 3
ITERATIONS = {'scratch': 180, 'warm': 60}
LEARNING_RATES = {'scratch': 0.2, 'warm': 0.05}


def parse_args() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--full', action='store_true', help='train S0 to S4 of every family, not S0 to S2'
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of everything (default: 0)')
    parser.add_argument(
        '--work-dir', type=Path, help='default: work_dirs/quickstart, with the seed unless 0'
    )
    parser.add_argument(
        '--processes',
        type=int,
        default=min(2, os.cpu_count() or 1),
        help='processes that work at the same time, one CPU thread each (default: %(default)s)',
    )
    parser.add_argument(
        '--smoke',
        action='store_true',
        help='two minutes of everything, to see whether it runs; the numbers mean nothing',
    )
    args = parser.parse_args()
    for key, smallest in (('seed', 0), ('processes', 1)):
        if getattr(args, key) < smallest:
            parser.error(f'--{key} {getattr(args, key)} must be {smallest} or more')
    return args


def check_settings(work_dir: Path, settings: dict[str, object]) -> None:
    """Notes what a work dir is for.

    Raises:
        UsageError: It holds a run of other settings.
    """
    file = work_dir / 'quickstart.json'
    text = json.dumps(settings)
    found = read_text(file) if file.exists() else ''
    if found not in ('', text):
        raise UsageError(
            f'work_dir={work_dir} holds a quickstart of other settings or configs, {found:.300}, '
            f'not {text}: take another --work-dir or remove it'
        )
    write_text(file, text)


def run(
    tool: str, config: str, work_dir: Path, args: argparse.Namespace, arguments: list[str]
) -> None:
    """Runs a tool of this folder in several processes; its log goes to the work dir.

    Raises:
        SystemExit: The tool failed.
    """
    script, config = ROOT / 'tools' / f'dist_{tool}.sh', CONFIGS / config
    command = [str(script), str(config), str(args.processes), '--work-dir', str(work_dir)]
    environment = {**os.environ, 'PYTHON': sys.executable}
    run_logged([*command, *arguments], ROOT, work_dir, args.lock, env=environment)


def options_of(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Config overrides for super-supernet and search."""
    supernet = [f'randomness.seed={args.seed}', f'train_dataloader.sampler.seed={args.seed}']
    search = [f'randomness.seed={args.seed}']
    if args.smoke:
        supernet += ['train_cfg.max_iters=20', 'model.warmup_iters=10']
        search += [
            'test_cfg.subnet_evaluator.max_images=250',
            'test_cfg.subnet_evaluator.calibration_images=256',
        ]
    return supernet, search


def training_options(start: str, seed: int, iterations: int) -> dict[str, object]:
    """Config overrides of one training: a shorter schedule, a tenth of it warm-up."""
    return {
        'randomness.seed': seed,
        'train_dataloader.sampler.seed': seed,
        'optim_wrapper.optimizer.lr': LEARNING_RATES[start],
        'param_scheduler.0.end': iterations // 10,
        'param_scheduler.1.begin': iterations // 10,
        'param_scheduler.1.end': iterations,
        'train_cfg.max_iters': iterations,
        # Every network is tested at its end.
        **dict.fromkeys(('val_cfg', 'val_dataloader', 'val_evaluator')),
    }


def read_config(name: str) -> Any:
    """A config of the digit data, without importing what it needs to run."""
    from mmengine.config import Config

    return Config.fromfile(CONFIGS / name, import_custom_modules=False)


def configs_digest() -> str:
    """SHA-256 of what all configs of the digit data say."""
    names = [
        f'{name}_digits.py'
        for name in ('supernet', 'search-mcea', 'search-random', 'search-compound', 'arch-net')
    ]
    contents = [read_config(name).to_dict() for name in names]
    text = json.dumps(contents, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def train_supernet(args: argparse.Namespace, work_dir: Path, options: list[str]) -> Path:
    """Trains the super-supernet unless its last checkpoint is there; returns that."""
    iterations = read_config('supernet_digits.py').train_cfg.max_iters
    iterations = 20 if args.smoke else iterations
    checkpoint = work_dir / f'iter_{iterations}.pth'
    if not is_whole(checkpoint):
        arguments = ['--resume', '--cfg-options', *options]
        run('train', 'supernet_digits.py', work_dir, args, arguments)
    return checkpoint


def search(args: argparse.Namespace, config: str, work_dir: Path, options: list[str]) -> int:
    """Runs one of the searches unless its result is there; returns its evaluations."""
    result = work_dir / 'result.json'
    if not result.is_file():
        run('search', config, work_dir, args, ['--resume', '--cfg-options', *options])
    found = check_keys(str(result), read_json(result), None, ('evaluations',))
    return integer(f'{result}: evaluations', found['evaluations'])


def jobs_of(args: argparse.Namespace, work_dir: Path) -> dict[str, list[RetrainJob]]:
    """All trainings by ``<family> S<stage> <start>``, those from weights and large ones first."""
    trainings = 1 if args.smoke else TRAININGS
    drawn = [f'{DRAWN}{i + 1}' for i in range(args.drawn)]
    last = SCALING_STAGES if args.full else 2 if args.smoke else 3
    jobs: dict[str, list[RetrainJob]] = {}
    for start in reversed(STARTS):
        iterations = 20 if args.smoke else ITERATIONS[start]
        # One training of a family among several: its mean is over families.
        numbers = dict.fromkeys(FAMILIES, trainings) | dict.fromkeys(drawn, 1)
        # Trainings from random weights are long, and in scaling stage 0 nothing is scaled.
        first = 0 if start == 'warm' or args.full else 1
        for stage in reversed(range(first, last)):
            for family, number in numbers.items():
                folder = work_dir / family
                weights = folder / 'weights' / f'scaling_stage_{stage}.pth'
                name = f'{family} S{stage} {start}'
                jobs[name] = [
                    RetrainJob(
                        f'{name} {k}',
                        str(CONFIGS / 'arch-net_digits.py'),
                        str(folder / 'archs' / f'scaling_stage_{stage}.json'),
                        str(work_dir / 'retrain' / f'{family}_s{stage}_{start}{k}'),
                        training_options(start, trainings * args.seed + k, iterations),
                        str(weights) if start == 'warm' else None,
                    )
                    for k in range(number)
                ]
    return jobs


def retrain(args: argparse.Namespace, work_dir: Path) -> dict[str, dict]:
    """Trains and tests the networks of all families that have to be trained."""
    wanted = jobs_of(args, work_dir)
    # Families share networks, at least S0 of compound scaling: one training serves all.
    kept: dict[tuple[object, ...], list[RetrainJob]] = {}
    for jobs in wanted.values():
        for job in jobs:
            options = tuple(job.options.items())
            kept.setdefault((Arch.from_json(job.arch), job.weights is None, options), []).append(
                job
            )
    shared = {job.name: same[0] for same in kept.values() for job in same}
    first = [same[0] for same in kept.values()]
    lengths = {job.name: job.options['train_cfg.max_iters'] for job in first}
    columns = (
        TextColumn('  {task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        text = f'iterations of {len(first)} trainings'
        total = progress.add_task(text, total=sum(lengths.values()))
        done = dict.fromkeys(lengths, 0)

        def on_progress(job: RetrainJob, count: int) -> None:
            done[job.name] = count
            progress.update(total, completed=sum(done.values()))

        for job in first:
            if job.result() is not None:
                on_progress(job, lengths[job.name])
        results = run_jobs(first, args.processes, on_progress)
        progress.update(total, completed=sum(lengths.values()))
    tested: dict[str, dict] = {}
    for name, jobs in wanted.items():
        network, start = name.rsplit(' ', 1)
        found = [results[shared[job.name].name] for job in jobs]
        row = tested.setdefault(network, {'accuracies': {}, 'images': found[0]['images']})
        row['accuracies'][start] = [result['accuracy'] for result in found]
    return tested


def main() -> None:
    """Runs all steps and shows what came out."""
    args = parse_args()
    set_environment()
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    start = time.monotonic()
    name = 'quickstart' + ('-smoke' if args.smoke else '')
    name += f'-seed{args.seed}' if args.seed else ''
    work_dir = args.work_dir or Path('work_dirs') / name
    settings = {'seed': args.seed, 'smoke': args.smoke, 'configs': configs_digest()}
    args.lock = take_work_dir(work_dir)
    check_settings(work_dir, settings)
    args.drawn = 2 if args.smoke else DRAWN_FAMILIES
    supernet_options, search_options = options_of(args)

    heading('1. Super-supernet: one set of weights for every network of the space', start)
    console.print(
        '[dim]The first run composes 27,000 images before, which takes half a minute.[/]'
    )
    checkpoint = train_supernet(args, work_dir / 'supernet', supernet_options)
    search_options.append(f'load_from={checkpoint}')

    heading('2. Search of base model and scaling strategy', start)
    options = search_options + (['test_cfg.search.evaluations=40'] if args.smoke else [])
    evaluations = search(args, 'search-mcea_digits.py', work_dir / 'searched', options)

    heading('3. Baselines: as many random networks, uniform compound scaling, chance', start)
    options = [*search_options, f'test_cfg.search.evaluations={evaluations}']
    search(args, 'search-random_digits.py', work_dir / 'random', options)
    base = work_dir / 'searched' / 'archs' / 'scaling_stage_0.json'
    options = [*search_options, f'test_cfg.search.base={base}']
    search(args, 'search-compound_digits.py', work_dir / 'compound', options)
    for i in range(args.drawn):
        # The best of one family is that family.
        seed = 1000 * (args.seed + 1) + i
        drawn = [f'test_cfg.search.evaluations={SCALING_STAGES}', f'test_cfg.seed={seed}']
        folder = work_dir / f'{DRAWN}{i + 1}'
        search(args, 'search-random_digits.py', folder, [*search_options, *drawn])

    heading("4. Training of the networks, from random weights and from the search's", start)
    results = retrain(args, work_dir)

    rows = collect(work_dir, results, args.drawn)
    console.print()
    console.print(table(rows))
    console.print()
    console.print(ranking_table(rows))
    write_json(work_dir / 'families.json', {'rows': rows, 'ranking': ranking(rows)})
    plot(rows, work_dir / 'families.png')
    heading(f'Done: {work_dir}/families.json, families.png and searched/result.json', start)


if __name__ == '__main__':
    run_steps(main)
