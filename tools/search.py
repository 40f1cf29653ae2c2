#!/usr/bin/env python
"""Searches base model and scaling strategy in a trained super-supernet; writes result.json."""

import argparse

from mmscale.apis.plan import make_plan
from mmscale.apis.search import (
    check_search,
    dry_run,
    profile,
    search_with,
)
from mmscale.launch.command_line import ToolParser, add_common_arguments, load_config, show
from mmscale.launch.runner import run_tool


def parse_args() -> argparse.Namespace:
    """Parses the command line."""
    parser = ToolParser(
        description=__doc__,
        epilog='The super-supernet is the checkpoint that load_from in the config names; '
        '--profile and --dry-run need none, --plan does without as long as there is none.',
    )
    add_common_arguments(parser)
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
    parser.add_argument('--json', action='store_true', help='print profile or plan as JSON')
    args = parser.parse_args()
    looks_only = args.profile or args.plan
    if args.json and not looks_only:
        parser.error('--json needs --profile or --plan')
    if args.launcher != 'none' and (looks_only or args.dry_run):
        parser.error('--profile, --plan and --dry-run run in one process: leave out --launcher')
    if args.retry_failed and not args.resume:
        parser.error('--retry-failed needs --resume')
    if args.resume and looks_only:
        parser.error('--profile and --plan touch nothing: leave out --resume')
    return args


def main() -> None:
    """Searches, or says what a search would do."""
    args = parse_args()
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
