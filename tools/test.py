#!/usr/bin/env python
"""Tests a checkpoint of a config's model on its test data."""

import argparse

from mmscale.apis.command_line import add_common_arguments, load_config
from mmscale.apis.launch import build_runner, run_tool


def parse_args() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', help='file to dump the predictions to (.pkl)')
    return parser.parse_args()


def main() -> None:
    """Builds the runner and tests."""
    args = parse_args()
    config = load_config(args)
    config.load_from = args.checkpoint
    if args.out is not None:
        evaluator = config.test_evaluator
        evaluators = list(evaluator) if isinstance(evaluator, (list, tuple)) else [evaluator]
        config.test_evaluator = [*evaluators, dict(type='DumpResults', out_file_path=args.out)]
    build_runner(config, 'test').test()


if __name__ == '__main__':
    run_tool(main)
