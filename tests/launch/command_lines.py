"""Command lines and files for tests of what reads them."""

import argparse
from pathlib import Path

from mmscale.launch.command_line import add_common_arguments


def arguments(*words):
    parser = argparse.ArgumentParser()
    add_common_arguments(parser)
    return parser.parse_args([str(word) for word in words])


def write(name, text):
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text, encoding='utf-8')
    return name
