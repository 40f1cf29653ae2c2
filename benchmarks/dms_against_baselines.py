#!/usr/bin/env python
"""Compares differentiable model scaling (DMS) with other ways to half of a trained network's cost.

``python benchmarks/dms_against_baselines.py --seeds 3
--out docs/results/dms_against_baselines.json``

Three networks are trained; a seed is that of initialisation and of the order of images. Each is
then pruned to half of its multiply-adds: by DMS with the weights at rest (the paper's Table 2
protocol), by global Taylor importance, and by the same share of every width. All of them go
through the code of ``tools/prune.py --method``. What is left is tested right after, with the
statistics of its batch norms measured anew, after a short training, and after a long one from
random weights. ``DMS np`` is a search from random weights, which hands no weights down.

``--networks RetinaNet`` is a detector, with mAP for accuracy; it needs ``make detection``.

``evolution`` searches a super-supernet, whose training is counted, for base models of the same
cost; ``depth`` in its name, as in that of DMS, means that depths are all that is chosen.
Seconds are of the CPU. What is finished is not done again.
"""

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from rich.console import Console
from rich.table import Table
from scipy import stats

from mmscale.apis.networks import build_module, config_image_shape
from mmscale.apis.pruned_files import export_search, model_settings
from mmscale.apis.trained_pruning import prune_trained
from mmscale.arch import SearchSpace, get_arch
from mmscale.cost import count, count_module
from mmscale.engine.calibration import recalibrate
from mmscale.launch.command_line import read_config, set_environment
from mmscale.launch.runner import build_runner

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / 'configs'
SHARE = 0.5
SEARCH_ITERATIONS = 200
NP_ITERATIONS = 400
CALIBRATION_IMAGES = 1024
TUNING_ITERATIONS = 150
TUNING_RATE = 0.25  # of the recipe's learning rate
TOLERANCE = 0.02

DMS, TAYLOR, L1 = 'DMS', 'Taylor', 'uniform L1'
DEPTH, NP = 'DMS, depth', 'DMS np'
EVOLUTION, EVOLUTION_DEPTH = 'evolution', 'evolution, depth'
METHODS = (DMS, TAYLOR, L1, NP, DEPTH, EVOLUTION_DEPTH, EVOLUTION)
COLUMNS = ('after', 'calibrated', 'tuned', 'scratch')


@dataclass
class Whole:
    """A network that is pruned.

    Attributes:
        config: Of its training.
        options: Overrides of that config.
        iterations: Of its training.
        scratch: Of the training of what is left from random weights, beyond its first plateau; 0
            for none.
        methods: What is compared on it.
    """

    config: str
    options: dict
    iterations: int
    scratch: int
    methods: tuple[str, ...] = (DMS, TAYLOR, L1)


NETWORKS = {
    'ArchNet': Whole(
        'scalenet/arch-net_digits.py',
        {'model.backbone.zero_init_residual': False, 'train_dataloader.batch_size': 64},
        1800,
        1500,
        METHODS,
    ),
    'ResNet-18': Whole(
        'dms/resnet18-w16_digits.py',
        {
            'model.backbone.stem_channels': 8,
            'model.backbone.base_channels': 8,
            'model.head.in_channels': 64,
        },
        1000,
        800,
    ),
    'DeiT': Whole('dms/deit-mini_digits.py', {}, 700, 600),
    'RetinaNet': Whole('det/retinanet_r18-w16_fpn_digits.py', {}, 500, 0, (DMS, L1)),
}


@dataclass
class Row:
    """What became of one network, one method and one seed."""

    network: str
    method: str
    seed: int
    search: dict
    cost: dict = field(default_factory=dict)
    accuracy: dict = field(default_factory=dict)


def once(folder: Path, work: Callable[[Path], dict]) -> dict:
    """What `work` says of a folder, from the file of an earlier run if that finished."""
    done = folder / 'done.json'
    if not done.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        done.write_text(json.dumps(work(folder), indent=1), encoding='utf-8')
    return json.loads(done.read_text(encoding='utf-8'))


def prepared(source: Path, folder: Path, seed: int, iterations: int, options: dict) -> Config:
    """A training config with what all trainings here share."""
    config = read_config(source)
    config.merge_from_dict(
        {
            'work_dir': str(folder),
            'experiment_name': '_'.join(folder.parts[-4:]),
            'log_level': 'WARNING',
            'randomness.seed': seed,
            'train_dataloader.sampler.seed': seed,
            'train_cfg.max_iters': iterations,
            **options,
        }
    )
    config.train_cfg.pop('val_interval', None)
    config.val_cfg = config.val_dataloader = config.val_evaluator = None
    return config


def train(config: Config, schedule: bool = True) -> tuple[Runner, float]:
    """Trains; returns the runner, which has not tested yet, and the CPU seconds."""
    end = config.train_cfg.max_iters
    warm = max(1, min(60, end // 10))
    config.param_scheduler = [
        dict(type='LinearLR', start_factor=0.04, by_epoch=False, begin=0, end=warm)
    ]
    if schedule:
        config.param_scheduler += [
            dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False, begin=warm, end=end)
        ]
    start = time.process_time()
    runner = build_runner(config, 'train')
    runner.train()
    return runner, round(time.process_time() - start, 1)


def accuracy(runner: Runner) -> float:
    """Accuracy on the test images, or mAP of a detector, in per cent."""
    found = runner.test()
    if 'accuracy/top1' in found:
        return round(found['accuracy/top1'], 3)
    # Where nothing is detected at all, there is no mAP.
    return round(100 * found.get('coco/bbox_mAP', 0.0), 3)


def train_whole(folder: Path, whole: Whole, seed: int) -> dict:
    """Trains a whole network, and tests it."""
    config = prepared(CONFIGS / whole.config, folder, seed, whole.iterations, whole.options)
    runner, seconds = train(config)
    torch.save({'state_dict': runner.model.state_dict()}, folder / 'weights.pth')
    return {'accuracy': accuracy(runner), 'cpu_seconds': seconds}


def prune(folder: Path, whole: Whole, method: str, seed: int, weights: Path) -> dict:
    """Prunes a trained network to half of its multiply-adds."""
    config = prepared(CONFIGS / whole.config, folder / 'pruning', seed, 1, whole.options)
    start = time.process_time()
    name = {TAYLOR: 'taylor', L1: 'l1'}.get(method, 'dms')
    search = {DEPTH: {'search': ['depth']}}
    prune_trained(
        config,
        weights,
        folder,
        name,
        SHARE,
        iterations=SEARCH_ITERATIONS,
        calibration_images=0,
        overwrite=True,
        dms_settings=search.get(method),
    )
    return {'cpu_seconds': round(time.process_time() - start, 1)}


def search_from_scratch(folder: Path, whole: Whole, seed: int) -> dict:
    """Searches by gradient while weights are trained from random ones."""
    config = prepared(CONFIGS / whole.config, folder, seed, NP_ITERATIONS, whole.options)
    recipe = read_config(CONFIGS / whole.config)
    recipe.merge_from_dict(whole.options)
    resolution = get_arch(config.model.backbone.arch).resolution
    config.model = dict(
        type='mmscale.DMSModel',
        model=config.model.to_dict(),
        target=SHARE,
        input_shape=(1, resolution, resolution),
    )
    config.custom_hooks = [*config.custom_hooks, dict(type='mmscale.DMSHook')]
    runner, seconds = train(config, schedule=False)
    export_search(config, runner.model.state_dict(), folder, recipe, overwrite=True)
    return {'cpu_seconds': seconds}


def evolve(folder: Path, seed: int, checkpoint: Path, goal: int, kernels: bool) -> dict:
    """Evolves base models of that cost in a super-supernet."""
    start = time.process_time()
    config = read_config(CONFIGS / 'scalenet' / 'search-evolution_digits.py')
    config.merge_from_dict(
        {
            'work_dir': str(folder / 'search'),
            'experiment_name': '_'.join(folder.parts[-4:]),
            'log_level': 'WARNING',
            'load_from': str(checkpoint),
            'randomness.seed': seed,
            'test_cfg.seed': seed,
            'test_cfg.budget': goal,
            'test_cfg.tolerance': TOLERANCE,
        }
    )
    if not kernels:
        for stage in config.model.backbone.space.stages:
            stage.kernels = stage.kernels[-1:]
    build_runner(config, 'test').test()
    found = json.loads((folder / 'search' / 'result.json').read_text(encoding='utf-8'))
    shutil.copy(folder / 'search' / 'archs' / 'scaling_stage_0.json', folder / 'arch.json')
    seconds = round(time.process_time() - start, 1)
    return {'cpu_seconds': seconds, 'evaluations': found['evaluations']}


def train_super_net(folder: Path) -> dict:
    """Trains the super-supernet that is evolved in."""
    config = read_config(CONFIGS / 'scalenet' / 'supernet_digits.py')
    config.merge_from_dict({'work_dir': str(folder), 'log_level': 'WARNING'})
    start = time.process_time()
    runner = build_runner(config, 'train')
    runner.train()
    torch.save({'state_dict': runner.model.state_dict()}, folder / 'weights.pth')
    return {'cpu_seconds': round(time.process_time() - start, 1)}


def left(folder: Path, whole: Whole, into: Path, seed: int, iterations: int) -> Config:
    """The training config of what is left."""
    retrain = folder / 'retrain.py'
    if retrain.is_file():
        return prepared(retrain, into, seed, iterations, _data(whole))
    options = dict(whole.options)
    arch = get_arch(str(folder / 'arch.json'))
    options['model.backbone.arch'] = str(folder / 'arch.json')
    options['model.head.in_channels'] = arch.feature_channels
    return prepared(CONFIGS / whole.config, into, seed, iterations, options)


def _data(whole: Whole) -> dict:
    return {key: value for key, value in whole.options.items() if key.startswith('train_data')}


def test_handed_down(folder: Path, found: Path, whole: Whole, seed: int) -> dict:
    """Tests what is left with the weights that it was handed down, and trains it shortly."""
    config = left(found, whole, folder, seed, TUNING_ITERATIONS)
    config.load_from = str(found / 'weights.pth')
    config.optim_wrapper.optimizer.lr *= TUNING_RATE
    tested = build_runner(config.copy(), 'test')
    result = {'after': accuracy(tested)}
    tested.call_hook('before_train')
    recalibrate(tested.model, tested.train_dataloader, CALIBRATION_IMAGES)
    calibrated = folder / 'calibrated.pth'
    torch.save({'state_dict': tested.model.state_dict()}, calibrated)
    config.load_from = str(calibrated)
    config.experiment_name += '_tuned'
    again = config.copy()
    again.experiment_name += '_calibrated'
    result['calibrated'] = accuracy(build_runner(again, 'test'))
    runner, _ = train(config)
    return {**result, 'tuned': accuracy(runner)}


def train_from_scratch(folder: Path, found: Path, whole: Whole, seed: int) -> dict:
    """Trains what is left from random weights."""
    config = left(found, whole, folder, seed, whole.scratch)
    config.load_from = None
    runner, seconds = train(config)
    return {'accuracy': accuracy(runner), 'cpu_seconds': seconds}


def compare(name: str, method: str, seed: int, folder: Path, super_net: dict | None) -> Row:
    """One network, one method and one seed: what is left, and all trainings of it."""
    whole = NETWORKS[name]
    weights = folder / 'whole' / 'weights.pth'
    found = folder / method.replace(', ', '-').replace(' ', '_')

    def search(into: Path) -> dict:
        if method == NP:
            return search_from_scratch(into, whole, seed)
        if method in (EVOLUTION, EVOLUTION_DEPTH):
            goal = round(SHARE * count(get_arch(whole.options['model.backbone.arch'])).flops)
            checkpoint = folder.parents[1] / 'super_net' / 'weights.pth'
            return evolve(into, seed, checkpoint, goal, method == EVOLUTION)
        return prune(into, whole, method, seed, weights)

    row = Row(name, method, seed, once(found / 'found', search))
    left_over = found / 'found'
    config = left(left_over, whole, found, seed, 1)
    module = build_module(model_settings(config), config.default_scope)
    side = config_image_shape(config, module)
    counted = count_module(module, side, memory=False).cost
    row.cost = {'flops': counted.flops, 'params': counted.params}
    if super_net is not None and method in (EVOLUTION, EVOLUTION_DEPTH):
        row.search['training_cpu_seconds'] = super_net['cpu_seconds']
    elif method != NP:
        done = json.loads((folder / 'whole' / 'done.json').read_text(encoding='utf-8'))
        row.search['training_cpu_seconds'] = done['cpu_seconds']
    if method in (DMS, TAYLOR, L1):
        row.accuracy |= once(
            found / 'handed_down', lambda into: test_handed_down(into, left_over, whole, seed)
        )
    if whole.scratch:
        trained = once(
            found / 'scratch', lambda into: train_from_scratch(into, left_over, whole, seed)
        )
        row.accuracy['scratch'] = trained['accuracy']
    return row


def interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half of its 95 % interval (Student's t)."""
    if len(values) < 2:
        return statistics.mean(values), float('nan')
    error = statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values), float(stats.t.ppf(0.975, len(values) - 1) * error)


def tables_of(rows: list[Row], wholes: dict[str, list[float]]) -> list[Table]:
    """Accuracies by network and method, and paired differences between DMS and the others."""
    networks = list(dict.fromkeys(row.network for row in rows))
    accuracies = Table(title='Half of the multiply-adds: accuracy, mean ± deviation over seeds')
    for column in ('network', 'method', 'seeds', 'params', 'training + search, CPU s', *COLUMNS):
        accuracies.add_column(column, justify='left' if column in networks else 'right')
    for network in networks:
        mean = statistics.mean(wholes[network])
        accuracies.add_row(network, 'whole', str(len(wholes[network])), '', '', f'{mean:.1f}')
        for method in dict.fromkeys(row.method for row in rows if row.network == network):
            these = [row for row in rows if (row.network, row.method) == (network, method)]
            seconds = [row.search.get('training_cpu_seconds', 0) for row in these]
            accuracies.add_row(
                '',
                method,
                str(len(these)),
                f'{statistics.mean(row.cost["params"] for row in these):,.0f}',
                f'{statistics.mean(seconds):.0f} + '
                f'{statistics.mean(row.search["cpu_seconds"] for row in these):.0f}',
                *(_spread([r.accuracy[c] for r in these if c in r.accuracy]) for c in COLUMNS),
            )
    pairs = Table(title='DMS less the others, paired by network and seed: mean ± 95 % interval')
    for column in ('method', 'pairs', *COLUMNS):
        pairs.add_column(column, justify='right')
    of_dms = {(row.network, row.seed): row for row in rows if row.method == DMS}
    for method in dict.fromkeys(row.method for row in rows if row.method != DMS):
        these = [row for row in rows if row.method == method]
        these = [(of_dms[row.network, row.seed], row) for row in these]
        cells = []
        for column in COLUMNS:
            differences = [
                one.accuracy[column] - other.accuracy[column]
                for one, other in these
                if column in one.accuracy and column in other.accuracy
            ]
            cells.append('{:+.1f} ± {:.1f}'.format(*interval(differences)) if differences else '-')
        pairs.add_row(method, str(len(these)), *cells)
    return [accuracies, pairs]


def _spread(values: list[float]) -> str:
    if not values:
        return '-'
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f'{statistics.mean(values):.1f} ± {deviation:.1f}'


def main() -> None:
    """Runs every method on every network for every seed, prints tables and writes the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, default=3, help='number of seeds (default: 3)')
    parser.add_argument('--networks', nargs='+', choices=NETWORKS, default=list(NETWORKS)[:3])
    parser.add_argument('--methods', nargs='+', choices=METHODS, default=METHODS)
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/dms_against_baselines'))
    parser.add_argument('--out', type=Path, help='JSON file of the rows')
    args = parser.parse_args()
    if args.seeds < 1:
        parser.error(f'--seeds {args.seeds} must be 1 or more')
    if DMS not in args.methods:
        parser.error(f'--methods needs {DMS}, which the others are compared with')
    root = args.work_dir.resolve()
    root.mkdir(parents=True, exist_ok=True)
    space = read_config(CONFIGS / '_base_' / 'search_spaces' / 'digits.py').space
    SearchSpace(**space).largest(0).save(root / 'whole.json')
    NETWORKS['ArchNet'].options['model.backbone.arch'] = str(root / 'whole.json')
    rows, wholes, super_net = [], {}, None
    if {EVOLUTION, EVOLUTION_DEPTH} & set(args.methods) and 'ArchNet' in args.networks:
        super_net = once(root / 'super_net', train_super_net)
    for seed in range(args.seeds):
        for name in args.networks:
            whole, folder = NETWORKS[name], root / name / f'seed{seed}'
            trained = once(folder / 'whole', lambda into, w=whole, s=seed: train_whole(into, w, s))
            wholes.setdefault(name, []).append(trained['accuracy'])
            for method in (method for method in whole.methods if method in args.methods):
                rows.append(compare(name, method, seed, folder, super_net))
                print(f'{name}, seed {seed}, {method}: {rows[-1].accuracy}', flush=True)
    for table in tables_of(rows, wholes):
        Console(width=140).print(table)
    if args.out is not None:
        settings = {
            'share': SHARE,
            'search_iterations': SEARCH_ITERATIONS,
            'np_iterations': NP_ITERATIONS,
            'calibration_images': CALIBRATION_IMAGES,
            'tuning_iterations': TUNING_ITERATIONS,
            'iterations': {name: [w.iterations, w.scratch] for name, w in NETWORKS.items()},
        }
        found = {'settings': settings, 'whole': wholes, 'rows': [asdict(row) for row in rows]}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(found, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
    set_environment()
    main()
