#!/usr/bin/env python
"""Converts weights of mmpretrain's or timm's networks into an ArchNet's, and back."""

import argparse
from pathlib import Path

from mmscale.arch import Arch, get_arch
from mmscale.errors import UsageError, one_line
from mmscale.files import atomic_write
from mmscale.launch.command_line import ToolParser, read_checkpoint
from mmscale.launch.runner import run_tool
from mmscale.quiet import quiet_imports
from mmscale.shown import visible

SOURCES = ('mmpretrain', 'timm')


def parse_args() -> argparse.Namespace:
    """Parses the command line."""
    parser = ToolParser(
        description=__doc__,
        epilog='With --source, FILE gets the weights, for load_from or '
        'init_cfg=dict(type="Pretrained", checkpoint=FILE), and FILE.json beside it the Arch, for '
        'model.backbone.arch. With --to, FILE gets the weights under the names of that library.',
    )
    parser.add_argument('checkpoint', help='weights to convert (.pth or .safetensors)')
    parser.add_argument(
        'name',
        help="the network's name in the source (resnet50, tf_efficientnet_b0), a preset's, or an "
        "Arch's JSON file that has the padding and eps of the weights; with --to, the Arch that "
        'the weights are of',
    )
    library = parser.add_mutually_exclusive_group(required=True)
    library.add_argument('--source', choices=SOURCES, help='whose weights these are')
    library.add_argument('--to', choices=SOURCES, help="who gets these weights of an ArchNet's")
    parser.add_argument(
        '--out', required=True, metavar='FILE', help='file to write (.pth or .safetensors)'
    )
    return parser.parse_args()


def read_weights(path: str) -> dict:
    """Reads the weights in a checkpoint.

    Raises:
        UsageError: The file holds no weights, or something beside tensors and plain values.
    """
    checkpoint = read_checkpoint(path)
    with quiet_imports():
        from mmscale.models.checkpoints import weights_of

    return weights_of(path, checkpoint)


def main() -> None:
    """Reads, converts and writes."""
    args = parse_args()
    out = Path(args.out)
    if not Path(args.checkpoint).is_file():
        raise UsageError(f'checkpoint={args.checkpoint} is not a file')
    if out.suffix not in ('.pth', '.safetensors'):
        raise UsageError(f'--out {out}: the name must end in .pth or .safetensors')
    if out.exists() and out.samefile(args.checkpoint):
        raise UsageError(f'--out {out} is the checkpoint itself')
    if not out.parent.is_dir():
        raise UsageError(f'--out {out}: {out.parent} is not a folder')
    with quiet_imports():
        import torch

        from mmscale.models.checkpoints import write_safetensors
        from mmscale.models.converters import (
            convert_state_dict,
            matching_arch,
            weights_for_source,
        )
    try:
        weights = read_weights(args.checkpoint)
        if args.to:
            # Padding and eps are those that the weights were trained with, not the library's.
            weights = weights_for_source(weights, get_arch(args.name), args.to)
        else:
            if args.name.endswith('.json'):
                arch = Arch.from_json(args.name)
            else:
                arch = matching_arch(args.name, args.source)
            arch, weights = convert_state_dict(weights, arch, args.source)
    except (ImportError, OSError, ValueError) as error:
        raise UsageError(one_line(error)) from None
    try:
        if out.suffix == '.safetensors':
            write_safetensors(out, weights, {})
        else:
            with atomic_write(out) as file:
                torch.save({'state_dict': weights}, file)
        if not args.to:
            arch.save(out.with_suffix('.json'))
    except (OSError, RuntimeError) as error:  # torch raises the latter
        raise UsageError(f'--out {out}: {one_line(error)}') from None
    if args.to:
        print(visible(f'{out}: {len(weights)} tensors with the names of {args.to}'))
        return
    head = 'with classifier' if any(key.startswith('head.') for key in weights) else 'backbone'
    arch_file = out.with_suffix('.json')
    print(visible(f'{out}: {len(weights)} tensors, {head}; {arch_file}: the Arch'))


if __name__ == '__main__':
    run_tool(main)
