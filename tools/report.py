#!/usr/bin/env python
"""Draws a search, a super-supernet's training or a network: ``tools/report.py WORK_DIR``."""

import argparse
from pathlib import Path

from mmscale.launch.command_line import ToolParser, show
from mmscale.launch.runner import run_tool


def parse_args() -> argparse.Namespace:
    """Parses the command line."""
    parser = ToolParser(
        description='Draws, as PNG and SVG, what there is of a search, by evolution or by '
        'gradient, or of the training of a super-supernet, finished or running, or one network. '
        'Only reads what it reports on.'
    )
    parser.add_argument(
        'target', help="a work dir, or a network: a preset's name, an Arch's file, a config"
    )
    parser.add_argument(
        '--out',
        type=Path,
        help='folder of the pictures (default: WORK_DIR/report; of a single network: '
        'work_dirs/report)',
    )
    return parser.parse_args()


def main() -> None:
    """Draws and says what was drawn and what is missing."""
    args = parse_args()

    from mmscale.apis.reports.report import report

    target = Path(args.target)
    out = args.out or (target if target.is_dir() else Path('work_dirs')) / 'report'
    show(report(args.target, out))


if __name__ == '__main__':
    run_tool(main)
