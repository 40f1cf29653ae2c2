#!/usr/bin/env python
"""Exports a network: weights, configs, ONNX, torch.export, and a model card."""

from __future__ import annotations

import argparse

from mmscale.launch.command_line import ToolParser, add_config_options, show
from mmscale.launch.runner import run_tool
from mmscale.quiet import quiet_imports

_FORMATS = ('mmpretrain', 'mmdet', 'onnx', 'pt2', 'safetensors')


def parse_args() -> argparse.Namespace:
    parser = ToolParser(description=__doc__)
    parser.add_argument(
        'source',
        help='result.json of a search; an Arch (a name or its JSON file); a config (.py, or '
        'mmpretrain::NAME, mmdet::NAME); timm:NAME; or weights.pth or weights.safetensors of an '
        'earlier export',
    )
    parser.add_argument('--out', required=True, help='folder to write')
    parser.add_argument(
        '--checkpoint',
        help='the weights, of a classifier, a backbone, or the model of the config (default: '
        'those that the search scored the network with)',
    )
    parser.add_argument(
        '--random-weights',
        action='store_true',
        help='without a checkpoint: a network that is to be timed before it is trained',
    )
    parser.add_argument(
        '--scaling-stage',
        type=int,
        metavar='J',
        help='network of result.json: its scaling stage, or its place in a Pareto front '
        '(default: 0)',
    )
    parser.add_argument(
        '--config',
        help='config around an Arch: its data, head and schedule go into the exported config',
    )
    add_config_options(parser)
    parser.add_argument(
        '--formats',
        nargs='+',
        choices=_FORMATS,
        default=_FORMATS,
        help='what to write beside weights, Arch and model card (default: all)',
    )
    parser.add_argument(
        '--detector',
        default='retinanet',
        help="mmdet's config to put the network into: retinanet (default), faster-rcnn, atss, gfl "
        'or rtmdet',
    )
    parser.add_argument(
        '--fuse', action='store_true', help='fold BNs into convolutions in ONNX and .pt2'
    )
    parser.add_argument(
        '--input-size',
        nargs=2,
        type=int,
        metavar=('HEIGHT', 'WIDTH'),
        help='size of the images of ONNX and .pt2 (default: what the network is made for)',
    )
    parser.add_argument(
        '--dynamic-size',
        action='store_true',
        help='ONNX and .pt2 take images of other sizes (multiples of 32), not only other batches',
    )
    parser.add_argument(
        '--dtype',
        choices=('float32', 'float16'),
        default='float32',
        help='what ONNX and .pt2 compute in; they take and give float32 (default: float32)',
    )
    parser.add_argument('--license', help='license of the weights, such as apache-2.0')
    parser.add_argument('--name', help='name of the network in the model card')
    parser.add_argument('--overwrite', action='store_true', help='replace an earlier export')
    parser.add_argument('--json', action='store_true', help='print one JSON object')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with quiet_imports():
        from mmscale.apis.exports.export import export
    exported = export(
        args.source,
        args.out,
        checkpoint=args.checkpoint,
        scaling_stage=args.scaling_stage,
        config=args.config,
        options=args.cfg_options,
        formats=args.formats,
        detector=args.detector,
        fuse=args.fuse,
        input_size=args.input_size,
        name=args.name,
        overwrite=args.overwrite,
        random_weights=args.random_weights,
        dynamic_size=args.dynamic_size,
        dtype=args.dtype,
        license=args.license,
    )
    show(exported, args.json)


if __name__ == '__main__':
    run_tool(main)
