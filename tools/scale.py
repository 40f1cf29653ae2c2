#!/usr/bin/env python
"""Scales a network by closed-form rules, or a searched family on, and shows what it costs."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

from mmscale.apis.cost import fit_latency
from mmscale.apis.scaling.archs import networks_to_time, plan_scaling
from mmscale.apis.scaling.budgets import read_budget
from mmscale.apis.scaling.common import HEAD_WIDTHS, MODES
from mmscale.apis.scaling.recipes import check_output, recipe_for, write_scaling
from mmscale.apis.scaling.searched import read_family
from mmscale.apis.scaling.tables import milliseconds, scaling_tables
from mmscale.arch import SCALING_RULES, preset_names
from mmscale.cost import (
    CONVENTIONS,
    METRICS,
    Constraints,
    Latency,
    LatencyModel,
    LatencySetting,
    NotReachable,
    this_device,
)
from mmscale.cost.latency import DEVICES, DTYPES
from mmscale.errors import UsageError, one_line
from mmscale.launch.command_line import ToolParser
from mmscale.launch.runner import run_tool
from mmscale.shown import visible

REPEATS = 15
DIVISORS = ('channel_divisor', 'resolution_divisor')

# Options that only one use of the tool has.
MATCHED = ('tolerance', *DIVISORS, *(field.name for field in fields(Constraints)))
TIMED = ('batch', 'dtype', 'train', 'repeats')
FITTED = ('base', 'fit_latency', 'latency_model', 'overwrite', 'device', *TIMED)


def parse_args() -> argparse.Namespace:
    parser = ToolParser(
        description=__doc__,
        epilog=f'strategies: {", ".join(SCALING_RULES)}, shares such as d1_w8_g8_r1, exponents '
        'such as depth=.2,width=.3,resolution=.1, a JSON or Python file of such rules, or the '
        f'result.json of a search. Networks: {", ".join(preset_names())}.',
    )
    parser.add_argument(
        'base',
        nargs='?',
        help="a network's name, timm:NAME, an Arch's or family's JSON file, or a config",
    )
    parser.add_argument(
        '--from-search',
        metavar='RESULT',
        help="a search's result.json: its strategy is fitted and the family scaled on",
    )
    parser.add_argument('--strategy', action='append', help='default: dWr; may be repeated')
    parser.add_argument('--alpha', type=float, action='append', help='other members of dWr')
    parser.add_argument('--factor', type=float, action='append', help='times the cost; repeatable')
    parser.add_argument(
        '--budget',
        metavar='METRIC=NUMBER',
        help='matched cost, as flops=4e9, flops=4G or flops=4x',
    )
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
    parser.add_argument(
        '--head-width',
        choices=HEAD_WIDTHS,
        help='of attention: kept (default), or free to become a third narrower or wider',
    )
    parser.add_argument('--latency-model', type=Path, metavar='FILE', help='predicts times')
    parser.add_argument('--measure', choices=DEVICES, help='time every network there')
    parser.add_argument(
        '--out', type=Path, help='folder for configs that train the networks, Archs and a plot'
    )
    parser.add_argument(
        '--data-config',
        metavar='CONFIG',
        help='with --out: config whose data, schedule and head train the networks (default: that '
        'of the base model, or a known recipe that fits it)',
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
        budget = read_budget(args.budget, args.metric)
        args.metric = budget.metric if '=' in args.budget else args.metric
        args.mode = args.mode or 'matched'
    if args.mode != 'matched' and args.from_search is None:
        refuse(args, MATCHED, 'needs --mode matched, or a --budget')
    if args.data_config is not None and args.out is None:
        raise UsageError('--data-config is for the configs that --out writes')
    if args.metric == 'latency' and args.latency_model is None:
        raise UsageError('latency needs --latency-model; --fit-latency makes one')


def timed_setting(
    args: argparse.Namespace, device: str, model: LatencyModel | None
) -> LatencySetting:
    """What networks are timed with: as asked for, else as the runtime model was fitted."""
    like = LatencySetting() if model is None else model.setting
    return this_device(
        device, args.batch or like.batch, args.dtype or like.dtype, args.train or like.train
    )


def save_latency_model(args: argparse.Namespace) -> None:
    """Measures networks on this device, fits the runtime model, and saves it."""
    from mmscale.visualization.style import short

    path = args.latency_model or Path('work_dirs') / f'latency_{args.device or "cpu"}.json'
    if path.exists() and not args.overwrite:
        raise UsageError(f'{path} exists: name another --latency-model, or give --overwrite')
    path.parent.mkdir(parents=True, exist_ok=True)
    setting = timed_setting(args, args.device or 'cpu', None)
    timed = (setting.device, setting.batch, setting.dtype, setting.train)
    archs = networks_to_time(args.base)

    def tell(name: str, latency: Latency) -> None:
        print(visible(f'{name}: {latency.median_ms:.2f} ms'), file=sys.stderr, flush=True)

    model = fit_latency(archs, *timed, repeats=args.repeats or REPEATS, on_measured=tell)
    model.save(path)
    print(visible(f'{len(archs)} networks: {model.setting}'))
    for key, r in model.pearson.items():
        sizes = sorted(getattr(network, key) for network in model.networks)
        interval = model.pearson_interval(key)
        within = (
            'no interval'
            if interval is None
            else '95 % interval {:.2f} to {:.2f}'.format(*interval)
        )
        spread = f'{short(sizes[0])} to {short(sizes[-1])}'
        print(f'Pearson r of time with {key} {r:.3f} ({within}; {key} from {spread})')
    print(f'ms = {model.a:.4g} + {model.b:.4g} acts + {model.c:.4g} flops')
    print(visible(f'median error of the fit {model.error:.1%}; saved as {path}'))


def scale(args: argparse.Namespace) -> None:
    """Scales, writes and prints."""
    model = None
    if args.latency_model is not None:
        if not args.latency_model.is_file():
            raise UsageError(f'{args.latency_model} is not a file; --fit-latency makes one')
        model = LatencyModel.load(args.latency_model)
    setting = args.measure and timed_setting(args, args.measure, model)
    left_out = []

    def leave_out(strategy: str, error: NotReachable) -> None:
        left_out.append(f'strategy={strategy}: {error}')

    with contextlib.redirect_stdout(sys.stderr):  # where libraries log, too
        plan = plan_scaling(
            args.base if args.from_search is None else read_family(args.from_search),
            args.strategy,
            args.factor or (),
            args.alpha or (),
            args.mode,
            args.metric,
            args.budget,
            0.01 if args.tolerance is None else args.tolerance,
            Constraints(args.largest_resolution, args.most_acts, args.most_memory),
            args.convention,
            model,
            channel_divisor=args.channel_divisor,
            resolution_divisor=args.resolution_divisor,
            head_width=args.head_width or 'kept',
        )
        if args.out is not None:
            recipe = recipe_for(plan, args.data_config)
            if not args.overwrite:
                check_output(plan.labels, args.out)
        networks = plan.run(leave_out)
        if not networks:
            raise UsageError('; '.join(left_out))
        for one in left_out:
            print(visible(f'left out: {one}'), file=sys.stderr)
        rows = [plan.base.unscaled(), *networks]
        times = [milliseconds(made, model, setting, args.repeats or REPEATS) for made in rows]
        if args.out is not None:
            write_scaling(plan, networks, args.out, recipe)
    if args.json:
        pairs = zip(networks, times[1:], strict=True)
        print(json.dumps([{**made.to_json(), **own} for made, own in pairs], indent=1))
        return
    from rich.console import Console

    solved = f'matched {plan.metric}' if plan.mode == 'matched' else 'reference'
    title = f'{plan.base.name}, {solved}, convention {plan.base.convention}'
    costs, shapes = scaling_tables(rows, times, title)
    console = Console()
    for part in (costs, '', shapes):
        console.print(part)
    for what, timed in (('predicted', model and model.setting), ('measured', setting)):
        if timed is not None:
            print(visible(f'{what}: milliseconds, {timed}'))
    if args.out is not None:
        out = visible(args.out)
        print(f'\nWrote configs, networks.json and sweep.png to {out}. To train one:')
        print(f'python tools/train.py {visible(args.out / networks[0].label)}.py')


def main() -> None:
    args = parse_args()
    check_args(args)
    try:
        save_latency_model(args) if args.fit_latency else scale(args)
    except (ValueError, OSError) as error:
        raise UsageError(one_line(error)) from error


if __name__ == '__main__':
    run_tool(main)
