#!/usr/bin/env python
"""Searches base model and scaling strategy in a trained super-supernet; writes result.json."""

import argparse

from mmscale.apis.any_budget import answer_budgets, read_limits, verify
from mmscale.apis.plan import make_plan
from mmscale.apis.search import (
    check_search,
    dry_run,
    profile,
    search_with,
)
from mmscale.launch.command_line import ToolParser, add_common_arguments, load_config, show
from mmscale.launch.runner import run_tool

_NETWORKS, _TOLERANCE = 5, 0.05


def parse_args() -> argparse.Namespace:
    """Parses the command line."""
    parser = ToolParser(
        description=__doc__,
        epilog='The super-supernet is the checkpoint that load_from in the config names; '
        '--profile and --dry-run need none, --plan does without as long as there is none. '
        '--from-archive needs no config either, but for --verify and for detectors.',
    )
    add_common_arguments(parser, needs_config=False)
    parser.add_argument(
        '--resume',
        action='store_true',
        help='continue the search in the work dir: what its archive knows is not evaluated again',
    )
    parser.add_argument(
        '--retry-failed',
        action='store_true',
        help='with --resume: evaluate anew what could not be scored before',
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        '--profile',
        action='store_true',
        help='only say what there is to search, what the budgets admit, what the schedule needs',
    )
    instead.add_argument(
        '--plan',
        action='store_true',
        help='time a few candidates, and say how long the search takes, and what memory and disk',
    )
    instead.add_argument(
        '--dry-run',
        action='store_true',
        help='search with an analytic score whose optimum is known, and compare with random '
        'search (default work dir: work_dirs/<config name>_dry_run)',
    )
    instead.add_argument(
        '--from-archive',
        metavar='WORK_DIR',
        help='evaluate nothing: answer other budgets from what a search has archived there, by a '
        'surrogate, with predicted scores; the search may be running',
    )
    _add_budgets(parser)
    parser.add_argument(
        '--json', action='store_true', help='print profile, plan or answers as JSON'
    )
    args = parser.parse_args()
    is_answer = args.from_archive is not None
    looks_only = args.profile or args.plan
    if args.json and not (looks_only or is_answer):
        parser.error('--json needs --profile or --plan, or --from-archive')
    if args.config is None and not is_answer:
        parser.error('the following arguments are required: config')
    _check_budgets(parser, args)
    if args.launcher != 'none' and (looks_only or is_answer or args.dry_run):
        parser.error(
            '--profile, --plan, --dry-run and --from-archive run in one process: leave out '
            '--launcher'
        )
    if args.retry_failed and not args.resume:
        parser.error('--retry-failed needs --resume')
    if args.resume and looks_only:
        parser.error('--profile and --plan touch nothing: leave out --resume')
    return args


def _add_budgets(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('budgets, with --from-archive')
    group.add_argument(
        '--budget',
        action='append',
        default=[],
        metavar='METRIC=VALUE[,METRIC=VALUE]',
        help='budgets that are to be met at once, of flops, params, acts or latency (in ms), as '
        'flops=0.5M,params=50K; given again, it is another question',
    )
    group.add_argument(
        '--cap',
        action='append',
        default=[],
        metavar='METRIC=VALUE',
        help='what no network may exceed',
    )
    group.add_argument(
        '--latency-model', metavar='FILE', help='predicts latencies, see mmscale.cost.LatencyModel'
    )
    group.add_argument(
        '--tolerance',
        type=float,
        help='largest relative deviation from a budget (default: 0.05)',
    )
    group.add_argument('--number', type=int, help='networks of an answer (default: 5)')
    group.add_argument(
        '--verify',
        type=int,
        metavar='N',
        help='score the best N of every answer with the super-supernet of the config, as the '
        'search does; appends to its archive',
    )
    group.add_argument(
        '--out', metavar='DIR', help='write answers.json and the networks, as Arch files'
    )


def _check_budgets(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.from_archive is None:
        keys = ('budget', 'cap', 'latency_model', 'tolerance', 'number', 'verify', 'out')
        given = [
            f'--{key.replace("_", "-")}' for key in keys if getattr(args, key) not in (None, [])
        ]
        if given:
            parser.error(f'{given[0]} needs --from-archive')
    elif args.resume:
        parser.error('--from-archive does not search: leave out --resume')
    elif args.config is None and (args.work_dir or args.cfg_options):
        parser.error('--work-dir and --cfg-options change a config: name one')
    elif args.verify is not None and args.config is None:
        parser.error(
            '--verify runs the config of the search: name it, as in tools/search.py CONFIG '
            f'--from-archive {args.from_archive} (the search has dumped it there)'
        )


def answer(args: argparse.Namespace) -> None:
    """Answers budgets from the archive of a search."""
    config = None
    if args.config is not None:
        config = load_config(args)
        check_search(config)
    # Only what is in an answer can be scored.
    number = max(_NETWORKS if args.number is None else args.number, args.verify or 0)
    answers = answer_budgets(
        args.from_archive,
        args.budget,
        read_limits('cap', ','.join(args.cap)) if args.cap else None,
        _TOLERANCE if args.tolerance is None else args.tolerance,
        args.latency_model,
        number,
        config,
    )
    if args.verify is not None:
        answers = verify(answers, config, args.verify)
    if args.out is not None:
        answers.save(args.out)
    show(answers, args.json)


def main() -> None:
    """Searches, or says what a search would do."""
    args = parse_args()
    if args.from_archive is not None:
        answer(args)
        return
    config = load_config(args)
    check_search(config)
    if args.dry_run:
        if args.work_dir is None:
            config.work_dir += '_dry_run'
        show(dry_run(config, args.resume))
    elif args.profile:
        show(profile(config), args.json)
    elif args.plan:
        show(make_plan(config), args.json)
    else:
        search_with(config, args.resume, args.retry_failed)


if __name__ == '__main__':
    run_tool(main)
