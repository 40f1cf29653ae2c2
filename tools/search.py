#!/usr/bin/env python
"""Searches base model and scaling strategy in a trained super-supernet; writes result.json."""

import argparse

from mmscale.apis.launch import (
    UsageError,
    add_common_arguments,
    build_runner,
    load_config,
    run_tool,
)


def parse_args() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='The super-supernet is the checkpoint that load_from in the config names.',
    )
    add_common_arguments(parser)
    parser.add_argument(
        '--resume',
        action='store_true',
        help='continue the search in the work dir: what its archive knows is not evaluated again',
    )
    return parser.parse_args()


def main() -> None:
    """Builds the runner and searches."""
    args = parse_args()
    config = load_config(args)
    if 'Loop' not in (config.get('test_cfg') or {}).get('type', ''):
        raise UsageError(
            f'config={args.config} has no search: test_cfg.type must be mmscale.MCEALoop '
            f'or another search loop'
        )
    if not config.get('load_from'):
        raise UsageError(
            'load_from is not set: name the checkpoint of a trained super-supernet with '
            '--cfg-options load_from=PATH'
        )
    config.test_cfg.resume = args.resume
    runner = build_runner(config, 'test')
    try:
        runner.test()
    except ValueError as error:
        # Of archive, budgets or schedule: it says what does not fit, and nothing was lost.
        raise UsageError(' '.join(str(error).split())) from error


if __name__ == '__main__':
    run_tool(main)
