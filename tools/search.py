#!/usr/bin/env python
"""Searches base model and scaling strategy in a trained super-supernet; writes result.json."""

import argparse
import json

from mmscale.apis.launch import (
    UsageError,
    add_common_arguments,
    build_runner,
    load_config,
    run_tool,
)
from mmscale.apis.search import (
    check_search,
    dry_run,
    dry_run_table,
    one_line,
    profile,
    profile_tables,
)


def parse_args() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='The super-supernet is the checkpoint that load_from in the config names; '
        '--profile and --dry-run need none.',
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
        '--dry-run',
        action='store_true',
        help='search with an analytic score whose optimum is known, and compare with random '
        'search (default work dir: work_dirs/<config name>_dry_run)',
    )
    parser.add_argument('--json', action='store_true', help='print the profile as JSON')
    args = parser.parse_args()
    if args.json and not args.profile:
        parser.error('--json needs --profile')
    if args.launcher != 'none' and (args.profile or args.dry_run):
        parser.error('--profile and --dry-run run in one process: leave out --launcher')
    if args.retry_failed and not args.resume:
        parser.error('--retry-failed needs --resume')
    if args.resume and args.profile:
        parser.error('--profile touches nothing: leave out --resume')
    return args


def main() -> None:
    """Searches, or says what a search would do."""
    args = parse_args()
    config = load_config(args)
    check_search(config)
    if args.profile or args.dry_run:
        from rich.console import Console

        console = Console()
        if args.dry_run:
            if args.work_dir is None:
                config.work_dir += '_dry_run'
            console.print(dry_run_table(dry_run(config, args.resume)))
        elif args.json:
            console.out(json.dumps(profile(config).to_json(), indent=1), highlight=False)
        else:
            console.print(*profile_tables(profile(config)), sep='\n', highlight=False)
        return
    if not config.get('load_from'):
        raise UsageError(
            'load_from is not set: name the checkpoint of a trained super-supernet with '
            '--cfg-options load_from=PATH'
        )
    config.test_cfg.resume = args.resume
    config.test_cfg.retry_failed = args.retry_failed
    runner = build_runner(config, 'test')
    try:
        runner.test()
    except (OSError, ValueError) as error:
        # Of archive, budgets, schedule or disk: it says what is wrong, and nothing was lost.
        raise UsageError(one_line(error)) from error


if __name__ == '__main__':
    run_tool(main)
