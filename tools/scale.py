#!/usr/bin/env python
"""Scales a network by closed-form rules, or a searched family on, and shows what it costs."""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from mmscale.apis.from_search import read_family
from mmscale.apis.launch import UsageError, run_tool
from mmscale.apis.scale import (
    MODES,
    ScaledNetwork,
    cost_of,
    find_base,
    find_rules,
    label_of,
    scale,
    scale_family,
)
from mmscale.apis.scale_configs import check_output
from mmscale.arch import SCALING_RULES, Arch, ScalingRule, group_widths, preset_names
from mmscale.cost import CONVENTIONS, Latency, LatencyModel, count, this_device
from mmscale.cost.matching import METRICS, Constraints, NotReachable

SWEEP_ALPHAS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
SWEEP_FACTORS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
# Networks that a runtime model is fitted on: acts, flops and params grow in different proportions.
LATENCY_BASES = ('RegNetY-200MF', 'MobileNetV2', 'ResNet-18')
LATENCY_RULES = ('d', 'w', 'r')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f'strategies: {", ".join(SCALING_RULES)}, shares such as d1_w8_g8_r1, or the '
        f'result.json of a search. Networks: {", ".join(preset_names())}.',
    )
    parser.add_argument(
        'base', nargs='?', help="a network's name, an Arch's JSON file, or a config (.py)"
    )
    parser.add_argument(
        '--from-search',
        metavar='RESULT',
        help="a search's result.json: its strategy is fitted and the family scaled on",
    )
    parser.add_argument('--strategy', action='append', help='default: dWr; may be repeated')
    parser.add_argument('--alpha', type=float, action='append', help='other members of dWr')
    parser.add_argument(
        '--factor', type=float, action='append', help="multiple of the base's cost; repeatable"
    )
    parser.add_argument(
        '--budget', metavar='METRIC=NUMBER', help='wanted cost, as flops=4e9; implies matched'
    )
    parser.add_argument(
        '--mode',
        choices=MODES,
        help="reference (default): the paper's rounding; matched: the true cost meets the budget",
    )
    parser.add_argument(
        '--metric', choices=METRICS, help='what --factor multiplies in matched mode'
    )
    matched = parser.add_argument_group('in matched mode')
    matched.add_argument('--tolerance', type=float, default=0.01, help='default: 0.01')
    matched.add_argument('--channel-divisor', type=int, help='default: 8')
    matched.add_argument(
        '--resolution-divisor', type=int, help="default: the network's total stride"
    )
    matched.add_argument('--largest-resolution', type=int, metavar='PIXELS')
    matched.add_argument('--most-acts', type=float, metavar='NUMBER')
    matched.add_argument(
        '--most-memory',
        type=float,
        metavar='BYTES',
        help='of params and acts of one image in single precision',
    )
    parser.add_argument(
        '--convention',
        choices=CONVENTIONS,
        default='pycls',
        help='pycls (default) counts bias additions and max-pools too',
    )
    parser.add_argument('--latency-model', type=Path, metavar='FILE', help='predicts times')
    parser.add_argument('--measure', choices=('cpu', 'cuda'), help='time every network there')
    parser.add_argument('--batch', type=int, default=1, help='images of a measured batch')
    parser.add_argument(
        '--out', type=Path, help='folder for configs that train the networks, Archs and a plot'
    )
    parser.add_argument('--overwrite', action='store_true', help='replace existing files')
    parser.add_argument('--json', action='store_true', help='print a list of JSON objects')
    fit = parser.add_argument_group('runtime model')
    fit.add_argument(
        '--fit-latency',
        action='store_true',
        help='measure a handful of networks here, and save the model as --latency-model',
    )
    fit.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    fit.add_argument('--dtype', choices=('float32', 'float16', 'bfloat16'), default='float32')
    fit.add_argument('--train', action='store_true', help='time training steps')
    fit.add_argument('--repeats', type=int, default=15, help='timed runs of each network')
    return parser.parse_args()


def check_args(args: argparse.Namespace) -> None:
    """Settles what depends on several arguments."""
    if args.batch < 1:
        raise UsageError(f'--batch {args.batch} must be 1 or more')
    if args.fit_latency:
        return
    if (args.base is None) == (args.from_search is None):
        raise UsageError('name a network, or --from-search with a result.json')
    if args.factor is None and args.budget is None:
        raise UsageError('give --factor, as --factor 4, or --budget, as --budget flops=4e9')
    if args.budget is not None:
        if args.mode == 'reference':
            raise UsageError('--budget needs --mode matched: reference does not solve for a cost')
        metric, _, number = args.budget.partition('=')
        if metric not in METRICS or args.metric not in (None, metric):
            raise UsageError(
                f'--budget {args.budget}: expected one of {", ".join(METRICS)}, as flops=4e9'
            )
        args.metric = metric
        try:
            args.budget = float(number)
        except ValueError:
            raise UsageError(f'--budget {args.budget}: {number!r} is not a number') from None
        args.mode = 'matched'
    if args.from_search is not None:
        if args.mode == 'reference' or args.strategy or args.alpha:
            raise UsageError(
                "--from-search scales the family's own strategy on, in matched mode; "
                'a result.json may also be a --strategy for another network'
            )
        args.mode = 'matched'
    args.mode = args.mode or 'reference'
    args.strategy = args.strategy or ['dWr']
    if args.metric == 'latency' and args.latency_model is None:
        raise UsageError('latency needs --latency-model; --fit-latency makes one')


@dataclass
class Job:
    """What the arguments ask for, checked.

    Attributes:
        name: Name of the base model.
        base: The base model.
        recipe: The config it is from, if it is from one.
        rules: The strategies.
        factors: Multiples of the base's cost; None stands for the budget.
        make: Scales the base by a rule to a factor.
    """

    name: str
    base: Arch
    recipe: str | None
    rules: list[ScalingRule]
    factors: list[float | None]
    make: Callable[[ScalingRule, list[float]], list[ScaledNetwork]]


def plan(args: argparse.Namespace, model: LatencyModel | None) -> Job:
    """Finds networks and rules; nothing is scaled yet."""
    given = dict(
        width_divisor=args.channel_divisor,
        resolution_divisor=args.resolution_divisor,
        largest_resolution=args.largest_resolution,
        most_acts=args.most_acts,
        most_memory=args.most_memory,
    )
    given = {key: value for key, value in given.items() if value is not None}
    if given and args.mode == 'reference':
        raise UsageError(f'{", ".join(given)}: constraints need --mode matched')
    shared = dict(budget=args.budget, tolerance=args.tolerance, latency_model=model)
    if args.from_search is not None:
        family = read_family(args.from_search)
        constraints = replace(family.constraints, **given)
        args.convention = family.convention
        args.metric = args.metric or family.metric

        def make(rule: ScalingRule, factors: list[float]) -> list[ScaledNetwork]:
            return scale_family(family, factors, args.metric, constraints=constraints, **shared)

        rules = [family.rule()]
        return Job(family.name, family.base, None, rules, args.factor or [None], make)
    name, base, recipe = find_base(args.base)
    constraints = Constraints(**given)
    args.metric = args.metric or 'flops'

    def make(rule: ScalingRule, factors: list[float]) -> list[ScaledNetwork]:
        return scale(
            base,
            [rule],
            factors,
            mode=args.mode,
            metric=args.metric,
            constraints=constraints,
            convention=args.convention,
            name=name,
            **shared,
        )

    rules = find_rules(args.strategy, args.alpha or ())
    return Job(name, base, recipe, rules, args.factor or [None], make)


def scale_all(job: Job) -> list[ScaledNetwork]:
    """Scales by every strategy; those that cannot meet a budget are told of and left out."""
    networks, failures = [], []
    for rule in job.rules:
        for factor in job.factors:
            try:
                networks += job.make(rule, [] if factor is None else [factor])
            except NotReachable as error:
                failures.append(f'strategy={rule.name}: {error}')
    if not networks:
        raise UsageError('; '.join(failures))
    for failure in failures:
        print(f'left out: {failure}', file=sys.stderr)
    return networks


def times(arch: Arch, args: argparse.Namespace, model: LatencyModel | None) -> dict[str, float]:
    """Milliseconds of a batch: predicted where there is a model, measured where asked for."""
    found = {}
    if model is not None:
        found['predicted_ms'] = model.predict(count(arch))
    if args.measure is not None:
        from mmscale.apis.cost import build_network, image_shape
        from mmscale.cost import measure_latency

        measured = measure_latency(
            build_network(arch), image_shape(arch), args.measure, args.batch
        )
        found['measured_ms'] = measured.median_ms
    return found


def print_table(
    job: Job,
    networks: list[ScaledNetwork],
    milliseconds: list[dict[str, float]],
    args: argparse.Namespace,
) -> None:
    """Prints costs, then shapes; the base model first, as its times are."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from mmscale.visualization.style import short

    def table_of(title: str | None, columns: list[str], folded: tuple[str, ...] = ()) -> Table:
        table = Table(
            title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False
        )
        for column in columns:
            whole = column not in folded
            justify = 'left' if column in ('strategy', *folded) else 'right'
            table.add_column(column, justify=justify, no_wrap=whole, overflow='fold')
        return table

    solved = f'matched {args.metric}' if args.mode == 'matched' else 'reference'
    costs = table_of(
        f'{job.name}, {solved}, convention {args.convention}',
        [
            *('strategy', 'factor', 'px', 'flops', 'params', 'acts', 'of target'),
            *(key.removesuffix('_ms') + ' ms' for key in milliseconds[0]),
        ],
    )
    lists = ('depths', 'widths', 'group widths', 'adjusted')
    shapes = table_of(None, ['strategy', 'factor', *lists], lists)
    rows: list[tuple[str, str, Arch, ScaledNetwork | None]] = [('base', '1', job.base, None)]
    for made in networks:
        rows.append((made.strategy, f'{made.factor:.4g}', made.arch, made))
    for (strategy, factor, arch, made), own in zip(rows, milliseconds, strict=True):
        cost = count(arch, args.convention)
        costs.add_row(
            strategy,
            factor,
            str(arch.resolution),
            *(short(value) for value in (cost.flops, cost.params, cost.acts)),
            '' if made is None else f'{made.achieved / made.target:.3f}',
            *(f'{ms:.2f}' for ms in own.values()),
        )
        adjustments = () if made is None or made.matched is None else made.matched.adjustments
        shapes.add_row(
            strategy,
            factor,
            *(' '.join(map(str, numbers)) for numbers in (arch.depths, arch.widths)),
            ' '.join(map(str, group_widths(arch) or '-')),
            ', '.join(map(str, adjustments)) or '-',
        )
    console = Console()
    console.print(costs)
    console.print()
    console.print(shapes)


def save(
    job: Job, networks: list[ScaledNetwork], args: argparse.Namespace, model: LatencyModel | None
) -> None:
    """Writes configs, Archs and the picture of a sweep."""
    from mmscale.apis.scale_configs import recipe_of, write_networks
    from mmscale.visualization.scalings import ScalingPoint, plot_scalings

    recipe = job.recipe or recipe_of(job.name, job.base)
    write_networks(networks, recipe, args.out)

    def point(strategy: str, arch: Arch) -> ScalingPoint:
        cost = count(arch, args.convention)
        time = None if model is None else model.predict(count(arch))
        return ScalingPoint(strategy, cost.flops, cost.acts, time)

    sweep = scale(
        job.base, ['dWr'], SWEEP_FACTORS, SWEEP_ALPHAS, convention=args.convention, name=job.name
    )
    figure = plot_scalings(
        point('base', job.base),
        [point(network.strategy, network.arch) for network in (*sweep, *networks)],
        f'{job.name} under fast scaling of several alphas',
        '' if model is None else str(model.setting),
    )
    for kind in ('png', 'svg'):
        figure.savefig(args.out / f'sweep.{kind}', dpi=120)


def fit_latency(args: argparse.Namespace) -> None:
    """Measures networks on this device, fits the runtime model, and saves it."""
    path = args.latency_model or Path('work_dirs') / f'latency_{args.device}.json'
    if path.exists() and not args.overwrite:
        raise UsageError(f'{path} exists: name another --latency-model, or give --overwrite')
    if args.repeats < 1:
        raise UsageError(f'--repeats {args.repeats} must be 1 or more')
    archs = {}
    for source in [args.base] if args.base else LATENCY_BASES:
        name, base, _ = find_base(source)
        archs[name] = base
        for network in scale(base, LATENCY_RULES, [2.0], name=name):
            archs[network.label] = network.arch
    from mmscale.apis.cost import fit_latency as fit

    def tell(name: str, latency: Latency) -> None:
        print(f'{name}: {latency.median_ms:.2f} ms', file=sys.stderr, flush=True)

    model = fit(
        archs, args.device, args.batch, args.dtype, args.train, 3, args.repeats, on_measured=tell
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    model.save(path)
    print(f'{len(archs)} networks: {model.setting}')
    print('Pearson r of time with', *(f'{key} {r:.3f}' for key, r in model.pearson.items()))
    print(f'ms = {model.a:.4g} + {model.b:.4g} acts + {model.c:.4g} flops')
    print(f'median error of the fit {model.error:.1%}; saved as {path}')


def main() -> None:
    args = parse_args()
    check_args(args)
    try:
        if args.fit_latency:
            fit_latency(args)
            return
        model = None
        if args.latency_model is not None:
            if not args.latency_model.is_file():
                raise UsageError(f'{args.latency_model} is not a file; --fit-latency makes one')
            model = LatencyModel.load(args.latency_model)
        if args.measure is not None:
            this_device(args.measure, args.batch)
        job = plan(args, model)
        if args.out is not None and not args.overwrite:
            present = cost_of(job.base, args.metric, args.convention, model)
            labels = [
                label_of(job.name, rule.name, args.budget / present if factor is None else factor)
                for rule in job.rules
                for factor in job.factors
            ]
            check_output(labels, args.out, ('sweep.png', 'sweep.svg'))
        networks = scale_all(job)
        milliseconds = [
            times(arch, args, model) for arch in (job.base, *(n.arch for n in networks))
        ]
        if args.out is not None:
            save(job, networks, args, model)
    except (ValueError, OSError) as error:
        raise UsageError(' '.join(str(error).split())) from error
    if args.json:
        rows = [
            {**network.to_json(), **own}
            for network, own in zip(networks, milliseconds[1:], strict=True)
        ]
        print(json.dumps(rows, indent=1))
    else:
        print_table(job, networks, milliseconds, args)


if __name__ == '__main__':
    run_tool(main)
