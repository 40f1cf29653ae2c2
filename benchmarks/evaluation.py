#!/usr/bin/env python
"""Time of a candidate's evaluation over that of the bare forward passes that it needs.

``python benchmarks/evaluation.py [--json]``

An evaluation extracts the network from the super-supernet, calibrates its BN statistics and counts
the scoring images that it gets right. The bare passes are those of the ready network over ready
images: of the calibration images in training mode, of the scoring images in eval mode. Images lie
in memory, normalised (``memory``), or as uint8 on the disk (``disk``, normalised in every pass).
Weights are random: the times are those of trained ones.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from paired import Ratio, arguments, paired, show

import mmscale.models  # noqa: F401 - quietly, before others import mmpretrain
from mmscale.arch import get_arch
from mmscale.launch.command_line import read_config
from mmscale.launch.runner import set_environment

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / 'configs' / 'scalenet' / 'search-mcea_digits.py'
ARCHS = ROOT / 'configs' / 'scalenet' / 'archs'
MODES = ('memory', 'disk')


def parse_args() -> argparse.Namespace:
    """Parses the command line."""
    parser = arguments(__doc__, rounds=11)
    parser.add_argument('--stages', type=int, nargs='+', default=range(5), help='scaling stages')
    parser.add_argument('--modes', nargs='+', choices=MODES, default=MODES)
    return parser.parse_args()


def make_evaluator(device: str, cache: bool | str, folder: str) -> Any:
    """An evaluator of the config's super-supernet, with random weights."""
    from mmscale.engine import SubnetEvaluator
    from mmscale.registry import MODELS

    config = read_config(str(CONFIG), [], None)
    model = MODELS.build({**config.model, 'data_preprocessor': config.data_preprocessor})
    return SubnetEvaluator(
        model.to(device),
        config.test_dataloader,
        config.calibration_dataloader,
        **{**config.test_cfg.subnet_evaluator, 'cache': cache, 'cache_dir': folder},
    )


def bare_passes(evaluator: Any, stage_arch: Any) -> Callable[[], None]:
    """The passes that an evaluation needs, of a ready network over ready images."""
    net = evaluator.extract(stage_arch)
    ready = []
    for images in (evaluator._calibration, evaluator._images):
        ready.append([inputs.clone() for inputs, _ in images.batches(stage_arch.resolution)])
    calibration, scoring = ready

    def run() -> None:
        net.backbone.train()
        with torch.no_grad():
            for inputs in calibration:
                net.backbone(inputs)
        net.eval()
        with torch.inference_mode():
            for inputs in scoring:
                net(inputs)

    return run


def measure(args: argparse.Namespace) -> list[tuple[dict[str, Any], Ratio]]:
    """A row per mode and scaling stage."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for mode in args.modes:
            evaluator = make_evaluator(args.device, mode == 'memory' or 'disk', folder)
            for stage in args.stages:
                arch = get_arch(ARCHS / f'digits-s{stage}.json')
                bare = bare_passes(evaluator, arch)
                ratio = paired(
                    lambda arch=arch, evaluator=evaluator: evaluator.evaluate(arch),
                    bare,
                    args.rounds,
                    args.device,
                    warmup=1,
                )
                what = dict(
                    space='digits',
                    scaling_stage=stage,
                    mode=mode,
                    resolution=arch.resolution,
                    batch=evaluator._images.batch_size,
                )
                rows.append((what, ratio))
    return rows


def main() -> None:
    """Measures and prints."""
    args = parse_args()
    set_environment()
    torch.set_num_threads(1)
    show(measure(args), args)


if __name__ == '__main__':
    main()
