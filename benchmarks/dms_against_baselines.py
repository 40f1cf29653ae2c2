#!/usr/bin/env python
"""Compares differentiable model scaling (DMS) with other ways to the same multiply-adds.

``python benchmarks/dms_against_baselines.py work_dirs/supernet_digits/iter_1000.pth --seeds 3
--out docs/results/dms_against_baselines.json``

Every method makes a network of half the multiply-adds of the largest base model of the digit
space, at 24 px. Each network is then trained in the same way: from random weights, and, where the
method has trained weights of the whole network, also from these. A seed is that of
initialisation, of the order of images, and of the evolution; images and super-supernet are the
same. Seconds are of the CPU, without the start of Python. What is finished is not done again.
Another ``--search-iterations`` has results in folders of its own.
"""

import argparse
import json
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
import torch_pruning
from mmengine.config import Config
from mmengine.runner import Runner
from rich.console import Console
from rich.table import Table
from torch import nn

from mmscale.apis.pruned_files import export_search
from mmscale.apis.scaling.archs import scale
from mmscale.arch import Arch, SearchSpace, get_arch
from mmscale.cost import Cost, count, count_module
from mmscale.launch.command_line import read_config, set_environment
from mmscale.launch.runner import build_runner
from mmscale.models.dms import Pruning, pruned_arch

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / 'configs'
SHARE = 0.5
TOLERANCE = 0.01
BATCH = 64
SEARCH_ITERATIONS = 300
RETRAINING_ITERATIONS = 600
TAYLOR_BATCHES = 10
POPULATION = 8
RULES = {'uniform width': 'w', 'dWr': 'dWr', 'dwr': 'dwr'}
GATES = {
    'DMS': {},
    'DMS, index importance': {'importance': 'index'},
    'DMS, no normalisation': {'normalise': 'none'},
    'DMS, min-max normalisation': {'normalise': 'minmax'},
}
TAYLOR, EVOLUTION = 'Taylor pruning', 'evolution'
# In the order of the work: what comes first is done for all seeds before the rest.
STAGES = (
    ('DMS', 'uniform width', TAYLOR, EVOLUTION),
    ('dwr',),
    ('DMS, index importance',),
    ('DMS, no normalisation',),
    ('DMS, min-max normalisation',),
    ('dWr',),
)


def once(folder: Path, work: Callable[[Path], dict]) -> dict:
    """What `work` says of a folder, from the file of an earlier run if that finished."""
    done = folder / 'done.json'
    if not done.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        done.write_text(json.dumps(work(folder), indent=1), encoding='utf-8')
    return json.loads(done.read_text(encoding='utf-8'))


def prepared(name: str, folder: Path, seed: int, iterations: int, options: dict) -> Config:
    """A training config with what all trainings here share."""
    config = read_config(CONFIGS / name)
    config.merge_from_dict(
        {
            'work_dir': str(folder),
            'experiment_name': '_'.join(folder.parts[-3:]),
            'log_level': 'WARNING',
            'randomness.seed': seed,
            'train_dataloader.sampler.seed': seed,
            'train_dataloader.batch_size': BATCH,
            'train_cfg.max_iters': iterations,
            **options,
        }
    )
    config.train_cfg.pop('val_interval', None)
    config.val_cfg = config.val_dataloader = config.val_evaluator = None
    return config


def plain(
    folder: Path, seed: int, arch: Path, iterations: int, weights: Path | None = None
) -> Runner:
    """Trains the network of an Arch; the runner has not tested it yet."""
    network = get_arch(str(arch))
    options = {
        'model.backbone.arch': str(arch),
        'model.backbone.zero_init_residual': False,
        'model.head.in_channels': network.feature_channels,
        'param_scheduler.1.end': iterations,
    }
    if weights is not None:
        options['load_from'] = str(weights)
    config = prepared('scalenet/arch-net_digits.py', folder, seed, iterations, options)
    runner = build_runner(config, 'train')
    runner.train()
    return runner


def retrain(folder: Path, seed: int, arch: Path, weights: Path | None, cost: Cost) -> dict:
    """Trains a found network, and tests it; its cost is counted once more on the module."""
    start = time.process_time()
    runner = plain(folder, seed, arch, RETRAINING_ITERATIONS, weights)
    seconds = time.process_time() - start
    images = torch.zeros(1, 1, *[runner.model.backbone.resolution] * 2)
    counted = count_module(runner.model, inputs=[images], memory=False)
    if (counted.flops, counted.params) != (cost.flops, cost.params):
        raise RuntimeError(f'{arch}: the module has {counted}, the Arch {cost}')
    return {
        'accuracy': round(runner.test()['accuracy/top1'], 3),
        'cpu_seconds': round(seconds, 1),
    }


def search_dms(folder: Path, seed: int, whole: Path, gates: dict, iterations: int) -> dict:
    """Searches by gradient, and exports what was found."""
    start = time.process_time()
    side = get_arch(str(whole)).resolution
    options = {
        'model.model.backbone.arch': str(whole),
        'model.input_shape': (1, side, side),
        'model.target': SHARE,
        'model.gates': gates,
    }
    config = prepared('dms/dms-digits-s2.py', folder, seed, iterations, options)
    runner = build_runner(config, 'train')
    runner.train()
    export_search(config, runner.model.state_dict(), folder)
    return {'cpu_seconds': round(time.process_time() - start, 1)}


def prune_taylor(folder: Path, seed: int, whole: Path, target: int, iterations: int) -> dict:
    """Trains the whole network, then prunes it globally by Torch-Pruning."""
    start = time.process_time()
    runner = plain(folder, seed, whole, iterations)
    seconds = time.process_time() - start
    accuracy = round(runner.test()['accuracy/top1'], 3)
    start = time.process_time()
    model = runner.model.eval()
    model.zero_grad()
    batches = iter(runner.train_dataloader)
    for _ in range(TAYLOR_BATCHES):
        data = model.data_preprocessor(next(batches), training=False)
        sum(model(**data, mode='loss').values()).backward()
    arch = pruned_globally(model, get_arch(str(whole)), target)
    arch.save(folder / 'arch.json')
    torch.save({'state_dict': model.state_dict()}, folder / 'weights.pth')
    seconds += time.process_time() - start
    return {'cpu_seconds': round(seconds, 1), 'whole_network_accuracy': accuracy}


def pruned_globally(model: nn.Module, arch: Arch, target: int) -> Arch:
    """Prunes, in place, the channels of the least Taylor importance; returns the Arch of the rest.

    Graph and importance (of the gradients that the model has) are Torch-Pruning's; the threshold
    is where the multiply-adds are reached. Few channels that many blocks share cost more than
    the tolerance: one whose end would miss the target is passed over.
    """
    images = torch.zeros(1, 1, arch.resolution, arch.resolution)
    head = [model.head.fc]
    pruner = torch_pruning.pruner.BasePruner(
        model,
        images,
        importance=torch_pruning.importance.GroupTaylorImportance(),
        global_pruning=True,
        ignored_layers=head,
    )
    graph, names = pruner.DG, {module: name for name, module in model.named_modules()}
    groups, ranked = [], []
    for group in graph.get_all_groups(head, pruner.root_module_types):
        ends = [
            names[dep.target.module]
            for dep, _ in group
            if isinstance(dep.target.module, nn.Conv2d)
            and graph.is_out_channel_pruning_fn(dep.handler)
        ]
        scores = pruner.estimate_importance(group).tolist()
        ranked += [(score, len(groups), i) for i, score in enumerate(scores)]
        groups.append((group[0].dep.target.module, group[0].dep.handler, ends, []))
    sizes = Counter(number for _, number, _ in ranked)

    def smaller() -> Arch:
        slices = {
            end: {'out': list(range(sizes[number] - len(gone)))}
            for number, (_, _, ends, gone) in enumerate(groups)
            for end in ends
        }
        return pruned_arch(arch, Pruning({}, slices), 'backbone.')

    for _, number, channel in sorted(ranked):
        gone = groups[number][3]
        if len(gone) + 1 == sizes[number]:
            continue
        gone.append(channel)
        flops = count(smaller()).flops
        if flops < target * (1 - TOLERANCE):
            gone.pop()
        elif flops <= target:
            break
    found = smaller()
    for module, handler, _, gone in groups:
        if gone:
            graph.get_pruning_group(module, handler, sorted(gone)).prune()
    return found


def scale_down(folder: Path, whole: Path, rule: str, target: int) -> dict:
    """Scales down by a closed-form rule, to the multiply-adds that were asked for."""
    start = time.process_time()
    (network,) = scale(
        str(whole),
        rule,
        mode='matched',
        budget=target,
        tolerance=TOLERANCE,
        channel_divisor=1,
        resolution_divisor=2,
        convention='mmscale',
    )
    network.arch.save(folder / 'arch.json')
    return {'cpu_seconds': round(time.process_time() - start, 1)}


def evolve(folder: Path, seed: int, checkpoint: Path, target: int, seconds: float) -> dict:
    """Evolves base models in the super-supernet for as many CPU seconds as DMS's search took."""
    spent = made = 0.0
    generations = further = 2
    while further > 0 and spent < seconds:
        start = time.process_time()
        config = read_config(CONFIGS / 'scalenet' / 'search-evolution_digits.py')
        config.merge_from_dict(
            {
                'work_dir': str(folder),
                'experiment_name': f'{"_".join(folder.parts[-3:])}_{generations}',
                'log_level': 'WARNING',
                'load_from': str(checkpoint),
                'randomness.seed': seed,
                'test_cfg.seed': seed,
                'test_cfg.budget': target,
                'test_cfg.tolerance': TOLERANCE,
                'test_cfg.search.population': POPULATION,
                'test_cfg.search.generations': generations,
                'test_cfg.resume': True,
            }
        )
        runner = build_runner(config, 'test')
        built = time.process_time() - start
        runner.test()
        run = time.process_time() - start
        spent += run
        made += run - built
        # What is left is for generations of the mean cost so far, after one more start.
        further = round((seconds - spent - built) / (made / generations))
        generations += further
    found = json.loads((folder / 'result.json').read_text(encoding='utf-8'))
    shutil.copy(folder / 'archs' / 'scaling_stage_0.json', folder / 'arch.json')
    return {'cpu_seconds': round(spent, 1), 'evaluations': found['evaluations']}


def compare(
    name: str, seed: int, folder: Path, whole: Path, checkpoint: Path, iterations: int
) -> dict:
    """One method with one seed: its search, and the trainings of what it found."""
    target = round(SHARE * count(get_arch(str(whole))).flops)

    def search(into: Path) -> dict:
        if name in GATES:
            return search_dms(into, seed, whole, GATES[name], iterations)
        if name in RULES:
            return scale_down(into, whole, RULES[name], target)
        if name == TAYLOR:
            return prune_taylor(into, seed, whole, target, iterations)
        dms = json.loads((folder.parent / 'DMS' / 'search' / 'done.json').read_text())
        return evolve(into, seed, checkpoint, target, dms['cpu_seconds'])

    result = {'search': once(folder / 'search', search)}
    arch, weights = folder / 'search' / 'arch.json', folder / 'search' / 'weights.pth'
    network = get_arch(str(arch))
    cost = count(network)
    result['network'] = {
        'resolution': network.resolution,
        'depths': list(network.depths),
        'widths': list(network.widths),
        'flops': cost.flops,
        'params': cost.params,
    }
    if abs(cost.flops / target - 1) > TOLERANCE:
        return result  # a search that failed: its network is none to compare
    starts = {'random': None, 'handed': weights} if name in ('DMS', TAYLOR) else {'random': None}
    for start, given in starts.items():
        into = folder / start
        result[start] = once(into, lambda f, given=given: retrain(f, seed, arch, given, cost))
    return result


def spread(values: list[float], decimals: int = 1) -> str:
    """Mean and standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f'{statistics.mean(values):.{decimals}f} ± {deviation:.{decimals}f}'


def table_of(rows: dict[str, list[dict]]) -> Table:
    """Accuracies and costs of every method."""
    table = Table(title='Equal multiply-adds on the digit data: mean ± deviation over seeds')
    columns = (
        *('method', 'seeds', 'M multiply-adds', 'params', 'search, CPU s'),
        *('from random weights', "from the search's weights"),
    )
    for column in columns:
        table.add_column(column, justify='left' if column == 'method' else 'right')
    for name, seeds in rows.items():
        costs = [row['network'] for row in seeds]
        accuracies = [
            [row[start]['accuracy'] for row in seeds if start in row]
            for start in ('random', 'handed')
        ]
        table.add_row(
            name,
            str(len(seeds)),
            f'{statistics.mean(cost["flops"] for cost in costs) / 1e6:.3f}',
            f'{statistics.mean(cost["params"] for cost in costs):,.0f}',
            f'{statistics.mean(row["search"]["cpu_seconds"] for row in seeds):.0f}',
            *(spread(values) if values else '-' for values in accuracies),
        )
    return table


def main() -> None:
    """Runs every method for every seed, prints the table and writes the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('checkpoint', type=Path, help='super-supernet of supernet_digits.py')
    parser.add_argument('--seeds', type=int, default=3, help='number of seeds (default: 3)')
    names = [name for stage in STAGES for name in stage]
    parser.add_argument('--methods', nargs='+', choices=names, default=names)
    parser.add_argument(
        '--search-iterations',
        type=int,
        default=SEARCH_ITERATIONS,
        help='of DMS, and before Taylor pruning (default: %(default)s)',
    )
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/dms_against_baselines'))
    parser.add_argument('--out', type=Path, help='JSON file of the rows')
    args = parser.parse_args()
    if not args.checkpoint.is_file():
        parser.error(f'checkpoint={args.checkpoint} is not a file')
    if args.seeds < 1:
        parser.error(f'--seeds {args.seeds} must be 1 or more')
    if args.search_iterations < 1:
        parser.error(f'--search-iterations {args.search_iterations} must be 1 or more')
    if EVOLUTION in args.methods and 'DMS' not in args.methods:
        parser.error(f'--methods {EVOLUTION} needs DMS beside it, for its seconds')
    if args.search_iterations != SEARCH_ITERATIONS:
        args.work_dir /= f'search_of_{args.search_iterations}'
    args.work_dir.mkdir(parents=True, exist_ok=True)
    whole, checkpoint = args.work_dir / 'whole.json', args.checkpoint.resolve()
    space = read_config(CONFIGS / '_base_' / 'search_spaces' / 'digits.py').space
    SearchSpace(**space).largest(0).save(whole)
    rows: dict[str, list[dict]] = {}
    for stage in STAGES:
        for seed in range(args.seeds):
            for name in (name for name in stage if name in args.methods):
                folder = args.work_dir / f'seed{seed}' / name.replace(', ', '-').replace(' ', '_')
                row = compare(name, seed, folder, whole, checkpoint, args.search_iterations)
                rows.setdefault(name, []).append(row)
                accuracy = row.get('random', {}).get('accuracy', 'target missed')
                print(f'seed {seed}, {name}: {accuracy}', flush=True)
    Console(width=120).print(table_of(rows))
    if args.out is not None:
        settings = {
            'flops_of_whole_network': count(get_arch(str(whole))).flops,
            'share': SHARE,
            'batch': BATCH,
            'search_iterations': args.search_iterations,
            'retraining_iterations': RETRAINING_ITERATIONS,
            'taylor_batches': TAYLOR_BATCHES,
            'population': POPULATION,
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        found = {'settings': settings, 'methods': rows}
        args.out.write_text(json.dumps(found, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
    # Before torch does anything; it reads what it sets when it is first used.
    set_environment()
    main()
