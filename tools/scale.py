#!/usr/bin/env python
"""Scales a network by closed-form rules, or a searched family on, and shows what it costs."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmscale.apis.cost import fit_latency
from mmscale.apis.networks import find_arch
from mmscale.apis.scaling.archs import (
    ScaledNetwork,
    arch_of,
    cost_of,
    find_rules,
    networks_to_time,
    scale,
    scale_family,
)
from mmscale.apis.scaling.common import MODES, label_of
from mmscale.apis.scaling.recipes import check_output
from mmscale.apis.scaling.searched import read_family
from mmscale.arch import SCALING_RULES, Arch, ScalingRule, fast_rule, preset_names
from mmscale.cost import (
    CONVENTIONS,
    Latency,
    LatencyModel,
    LatencySetting,
    count,
    measure_latency,
    this_device,
)
from mmscale.cost.latency import DEVICES, DTYPES
from mmscale.cost.matching import METRICS, Constraints, NotReachable
from mmscale.errors import UsageError
from mmscale.launch.command_line import read_config
from mmscale.launch.runner import run_tool

if TYPE_CHECKING:
    from mmscale.apis.scaling.backbones import ScaledConfig

    Made = ScaledNetwork | ScaledConfig

REPEATS = 15
SWEEP_ALPHAS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
SWEEP_FACTORS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)

# Options that only one use of the tool has.
MATCHED = ('tolerance', *(field.name for field in fields(Constraints)))
TIMED = ('batch', 'dtype', 'train', 'repeats')
FITTED = ('base', 'fit_latency', 'latency_model', 'overwrite', 'device', *TIMED)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f'strategies: {", ".join(SCALING_RULES)}, shares such as d1_w8_g8_r1, or the '
        f'result.json of a search. Networks: {", ".join(preset_names())}.',
    )
    parser.add_argument(
        'base', nargs='?', help="a network's name, an Arch's or family's JSON file, or a config"
    )
    parser.add_argument(
        '--from-search',
        metavar='RESULT',
        help="a search's result.json: its strategy is fitted and the family scaled on",
    )
    parser.add_argument('--strategy', action='append', help='default: dWr; may be repeated')
    parser.add_argument('--alpha', type=float, action='append', help='other members of dWr')
    parser.add_argument('--factor', type=float, action='append', help='times the cost; repeatable')
    parser.add_argument('--budget', metavar='METRIC=NUMBER', help='matched cost, as flops=4e9')
    parser.add_argument(
        '--mode',
        choices=MODES,
        help="reference (default): the paper's rounding; matched: the true cost meets the budget",
    )
    matched = parser.add_argument_group('in matched mode')
    matched.add_argument('--metric', choices=METRICS, help='what --factor multiplies')
    matched.add_argument('--tolerance', type=float, help='default: 0.01')
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
        help='pycls (default) counts bias additions and max-pools too',
    )
    parser.add_argument('--latency-model', type=Path, metavar='FILE', help='predicts times')
    parser.add_argument('--measure', choices=DEVICES, help='time every network there')
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
    fit.add_argument('--device', choices=DEVICES, help='of --fit-latency; default: cpu')
    timed = parser.add_argument_group('of --fit-latency and --measure')
    like = 'default: what --latency-model was fitted with, or'
    timed.add_argument('--batch', type=int, help=f'images of a batch; {like} 1')
    timed.add_argument('--dtype', choices=DTYPES, help=f'{like} float32')
    timed.add_argument('--train', action='store_true', help='time training steps')
    timed.add_argument('--repeats', type=int, help='timed runs of each network; default: 15')
    return parser.parse_args()


def refuse(args: argparse.Namespace, keys: Iterable[str], reason: str) -> None:
    """Raises UsageError if any of these options is given: it would have no effect."""
    given = [key for key in keys if getattr(args, key) not in (None, False)]
    if given:
        raise UsageError(f'--{given[0].replace("_", "-")}: {reason}')


def check_args(args: argparse.Namespace) -> None:
    """Settles what depends on several arguments."""
    for key in ('batch', 'repeats'):
        if getattr(args, key) is not None and getattr(args, key) < 1:
            raise UsageError(f'--{key} {getattr(args, key)} must be 1 or more')
    if args.fit_latency:
        others = [key for key in vars(args) if key not in FITTED]
        refuse(args, others, '--fit-latency makes the runtime model alone')
        return
    refuse(args, ['device'], '--fit-latency alone has one; --measure names its own')
    if args.measure is None:
        refuse(args, TIMED, 'nothing is timed without --measure or --fit-latency')
    if (args.base is None) == (args.from_search is None):
        raise UsageError('name a network, or --from-search with a result.json')
    if args.factor is None and args.budget is None:
        raise UsageError('give --factor, as --factor 4, or --budget, as --budget flops=4e9')
    if args.budget is not None:
        if args.mode == 'reference':
            raise UsageError('--budget needs --mode matched: reference does not solve for a cost')
        if args.factor is not None:
            raise UsageError(f'--budget {args.budget} and --factor: give one of them')
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
        if not 0 < args.budget < math.inf:
            raise UsageError(f'--budget {metric}={number} must be above 0')
        args.mode = 'matched'
    if args.from_search is not None:
        if args.mode == 'reference' or args.strategy or args.alpha:
            raise UsageError(
                "--from-search scales the family's own strategy on, in matched mode; "
                'a result.json may also be a --strategy for another network'
            )
        refuse(args, ['convention'], 'a family keeps that of its search')
        args.mode = 'matched'
    args.mode = args.mode or 'reference'
    if args.mode == 'reference':
        refuse(args, MATCHED, 'needs --mode matched, or a --budget')
    args.tolerance = 0.01 if args.tolerance is None else args.tolerance
    args.strategy = args.strategy or ['dWr']
    if args.metric == 'latency' and args.latency_model is None:
        raise UsageError('latency needs --latency-model; --fit-latency makes one')


@dataclass
class Job:
    """What the arguments ask for, checked.

    Attributes:
        base: The base model, as scaled by nothing.
        recipe: The config it is from, if it is from one.
        rules: The strategies.
        factors: Multiples of the base's cost; a budget is the one that it comes to.
        make: Scales the base by a rule to a factor, as asked for.
        sketch: The same in reference mode.
    """

    base: Made
    recipe: str | None
    rules: list[ScalingRule]
    factors: list[float]
    make: Callable[[ScalingRule, float], Made]
    sketch: Callable[[ScalingRule, float], Made]


def plan(args: argparse.Namespace, model: LatencyModel | None) -> Job:
    """Finds the base model and the rules; nothing is scaled yet."""
    given = {field.name: getattr(args, field.name) for field in fields(Constraints)}
    given = {key: value for key, value in given.items() if value is not None}
    if args.from_search is not None:
        return plan_family(args, model, given)
    args.metric = args.metric or 'flops'
    rules = find_rules(args.strategy, args.alpha or ())
    recipe = None
    if args.base.endswith('.py'):
        config = read_config(args.base)
        recipe, name, arch = args.base, Path(args.base).stem, arch_of(config)
        if arch is None:
            refuse(args, given, 'constraints are for Archs')
            refuse(args, ['convention'], 'backbones with an adapter are counted by mmscale')
            return plan_config(args, model, config, rules)
    else:
        name, arch = find_arch(args.base)
    constraints = Constraints(**given)
    args.convention = args.convention or 'pycls'

    def make(rule: ScalingRule, factor: float) -> Made:
        (made,) = scale(
            arch,
            [rule],
            () if args.budget else [factor],
            mode=args.mode,
            metric=args.metric,
            budget=args.budget,
            tolerance=args.tolerance,
            constraints=constraints,
            convention=args.convention,
            latency_model=model,
            name=name,
        )
        return made

    base = unscaled(name, arch, args.convention)
    factors = factors_of(args, rules, cost_of(arch, args.metric, args.convention, model))
    return Job(base, recipe, rules, factors, make, sketch_of(name, arch, args.convention))


def unscaled(name: str, arch: Arch, convention: str) -> ScaledNetwork:
    cost = count(arch, convention)
    return ScaledNetwork(name, 'base', 1.0, arch, cost, 'flops', cost.flops, cost.flops)


def sketch_of(name: str, arch: Arch, convention: str) -> Callable[[ScalingRule, float], Made]:
    def sketch(rule: ScalingRule, factor: float) -> Made:
        return scale(arch, [rule], [factor], convention=convention, name=name)[0]

    return sketch


def factors_of(args: argparse.Namespace, rules: list[ScalingRule], present: float) -> list[float]:
    """The factors asked for, or the one that the budget is of the base's present cost."""
    if args.budget is not None:
        return [args.budget / present]
    for rule in rules:
        for factor in args.factor:
            rule.scaling(factor)  # refuses a bad one before any work
    return args.factor


def plan_family(args: argparse.Namespace, model: LatencyModel | None, given: dict) -> Job:
    """What there is to do for ``--from-search``."""
    family = read_family(args.from_search)
    constraints = replace(family.constraints, **given)
    args.convention = family.convention
    args.metric = args.metric or family.metric

    def make(rule: ScalingRule, factor: float) -> Made:
        (made,) = scale_family(
            family,
            () if args.budget else [factor],
            args.metric,
            args.budget,
            args.tolerance,
            constraints,
            model,
        )
        return made

    base = unscaled(family.name, family.base, family.convention)
    rules = [family.rule()]
    present = cost_of(family.base, args.metric, family.convention, model)
    sketch = sketch_of(family.name, family.base, family.convention)
    return Job(base, None, rules, factors_of(args, rules, present), make, sketch)


def plan_config(
    args: argparse.Namespace, model: LatencyModel | None, config: Any, rules: list[ScalingRule]
) -> Job:
    """What there is to do for a config whose backbone is no ArchNet."""
    from mmscale.apis.scaling.backbones import BaseConfig

    args.convention = 'mmscale'
    base = BaseConfig(args.base, config)
    factors = factors_of(args, rules, base.present(args.metric, model))

    def make(rule: ScalingRule, factor: float) -> Made:
        return base.scale(rule, factor, args.mode, args.metric, args.tolerance, model)

    return Job(base.as_scaled(), args.base, rules, factors, make, base.scale)


def scale_all(job: Job) -> list[Made]:
    """Scales by every strategy; those that cannot meet a budget are told of and left out."""
    networks, failures = [], []
    for rule in job.rules:
        for factor in job.factors:
            try:
                networks.append(job.make(rule, factor))
            except NotReachable as error:
                failures.append(f'strategy={rule.name}: {error}')
    if not networks:
        raise UsageError('; '.join(failures))
    for failure in failures:
        print(f'left out: {failure}', file=sys.stderr)
    return networks


def timed_setting(
    args: argparse.Namespace, device: str, model: LatencyModel | None
) -> LatencySetting:
    """What networks are timed with: as asked for, else as the runtime model was fitted."""
    like = LatencySetting() if model is None else model.setting
    return this_device(
        device, args.batch or like.batch, args.dtype or like.dtype, args.train or like.train
    )


def times(
    made: Made,
    args: argparse.Namespace,
    model: LatencyModel | None,
    setting: LatencySetting | None,
) -> dict[str, float]:
    """Milliseconds of a batch: predicted where there is a model, measured where asked for."""
    found = {}
    if model is not None:
        found['predicted_ms'] = model.predict(made.default_cost)
    if setting is not None:
        module, shape = made.build()
        timed = (setting.device, setting.batch, setting.dtype, setting.train)
        latency = measure_latency(module, shape, *timed, repeats=args.repeats or REPEATS)
        found['measured_ms'] = latency.median_ms
    return found


def print_table(
    rows: list[Made], milliseconds: list[dict[str, float]], args: argparse.Namespace
) -> None:
    """Prints costs, then shapes; the base model first."""
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
        f'{rows[0].name}, {solved}, convention {args.convention}',
        [
            *('strategy', 'factor', 'px', 'flops', 'params', 'acts', 'of target'),
            *(key.removesuffix('_ms') for key in milliseconds[0]),
        ],
    )
    lists = ('depths', 'widths', 'group widths', 'adjusted')
    shapes = table_of(None, ['strategy', 'factor', *lists], lists)
    for made, own in zip(rows, milliseconds, strict=True):
        first = made.strategy, f'{made.factor:.4g}'
        costs.add_row(
            *first,
            str(made.resolution),
            *(short(value) for value in (made.cost.flops, made.cost.params, made.cost.acts)),
            f'{made.achieved / made.target:.3f}',
            *(f'{ms:.2f}' for ms in own.values()),
        )
        matched = getattr(made, 'matched', None)
        shapes.add_row(
            *first,
            *(' '.join(f'{n:g}' for n in numbers) for numbers in (made.depths, made.widths)),
            ' '.join(map(str, made.group_widths or '-')),
            ', '.join(map(str, matched.adjustments if matched else ())) or '-',
        )
    console = Console()
    console.print(costs)
    console.print()
    console.print(shapes)


def save(
    job: Job, networks: list[Made], args: argparse.Namespace, model: LatencyModel | None
) -> None:
    """Writes configs, Archs and the picture of a sweep."""
    from mmscale.apis.scaling.recipes import recipe_of, write_networks
    from mmscale.visualization.scalings import ScalingPoint, plot_scalings

    recipe = job.recipe or recipe_of(job.base.name, job.base.arch)
    write_networks(networks, recipe, args.out)
    sweep = [
        job.sketch(fast_rule(alpha), factor) for alpha in SWEEP_ALPHAS for factor in SWEEP_FACTORS
    ]
    base, *points = (
        ScalingPoint(
            made.strategy,
            made.cost.flops,
            made.cost.acts,
            None if model is None else model.predict(made.default_cost),
        )
        for made in (job.base, *sweep, *networks)
    )
    title = f'{job.base.name} under fast scaling of several alphas'
    figure = plot_scalings(base, points, title, '' if model is None else str(model.setting))
    for kind in ('png', 'svg'):
        figure.savefig(args.out / f'sweep.{kind}', dpi=120)


def save_latency_model(args: argparse.Namespace) -> None:
    """Measures networks on this device, fits the runtime model, and saves it."""
    path = args.latency_model or Path('work_dirs') / f'latency_{args.device or "cpu"}.json'
    if path.exists() and not args.overwrite:
        raise UsageError(f'{path} exists: name another --latency-model, or give --overwrite')
    path.parent.mkdir(parents=True, exist_ok=True)
    setting = timed_setting(args, args.device or 'cpu', None)
    timed = (setting.device, setting.batch, setting.dtype, setting.train)
    archs = networks_to_time(args.base)

    def tell(name: str, latency: Latency) -> None:
        print(f'{name}: {latency.median_ms:.2f} ms', file=sys.stderr, flush=True)

    model = fit_latency(archs, *timed, repeats=args.repeats or REPEATS, on_measured=tell)
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
            save_latency_model(args)
            return
        model = None
        if args.latency_model is not None:
            if not args.latency_model.is_file():
                raise UsageError(f'{args.latency_model} is not a file; --fit-latency makes one')
            model = LatencyModel.load(args.latency_model)
        setting = args.measure and timed_setting(args, args.measure, model)
        with contextlib.redirect_stdout(sys.stderr):  # where libraries log, too
            job = plan(args, model)
        if args.out is not None and not args.overwrite:
            labels = [
                label_of(job.base.name, rule.name, factor)
                for rule in job.rules
                for factor in job.factors
            ]
            check_output(labels, args.out, ('sweep.png', 'sweep.svg'))
        with contextlib.redirect_stdout(sys.stderr):
            networks = scale_all(job)
            rows = [job.base, *networks]
            milliseconds = [times(made, args, model, setting) for made in rows]
            if args.out is not None:
                save(job, networks, args, model)
    except (ValueError, OSError) as error:
        raise UsageError(' '.join(str(error).split())) from error
    if args.json:
        pairs = zip(networks, milliseconds[1:], strict=True)
        print(json.dumps([{**made.to_json(), **own} for made, own in pairs], indent=1))
    else:
        print_table(rows, milliseconds, args)
        for what, timed in (('predicted', model and model.setting), ('measured', setting)):
            if timed is not None:
                print(f'{what}: milliseconds, {timed}')
        if args.out is not None:
            print(f'\nWrote configs, networks.json and sweep.png to {args.out}. To train one:')
            print(f'python tools/train.py {args.out / networks[0].label}.py')


if __name__ == '__main__':
    run_tool(main)
