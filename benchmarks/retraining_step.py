#!/usr/bin/env python
"""Time of a training step of an ArchNet over that of timm's network of the same layers.

Both have the same weights and get the same images. A step is forward, cross-entropy, backward
and the optimizer, which is the same class for both; ``train_step`` is what a run with
``tools/train.py`` does of it, with mmpretrain's classifier and MMEngine's optimizer wrapper, over
the same plain step of timm's network. At 32 px and batch 2 a forward pass is mostly calls: what a
GPU waits for. All is measured in pairs, see paired.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope
from mmpretrain.structures import DataSample
from paired import Ratio, arguments, paired, show
from torch import nn
from torch.nn.functional import cross_entropy

import mmscale.models  # noqa: F401
from mmscale.arch import get_arch
from mmscale.engine.optimizers import rmsprop_tf
from mmscale.models.timm_networks import to_timm
from mmscale.registry import MODELS

OPTIMIZERS = {
    'SGD': partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=1e-5),
    'RMSpropTF': partial(
        rmsprop_tf, lr=0.001, alpha=0.9, momentum=0.9, eps=1e-3, weight_decay=1e-5
    ),
}


def pair_of(arch: str, device: str) -> tuple[nn.Module, nn.Module]:
    """mmpretrain's classifier with an ArchNet, and timm's network with the same weights."""
    found = get_arch(arch)
    config = dict(
        type='ImageClassifier',
        backbone=dict(type='mmscale.ArchNet', arch=found),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=1000, in_channels=found.feature_channels),
        data_preprocessor=dict(type='ClsDataPreprocessor'),
    )
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        ours = MODELS.build(config)
    theirs = to_timm(found, ours.state_dict())
    # timm drops out half of the features of some networks by default, an ArchNet nothing.
    theirs.drop_rate = 0.0
    return ours.to(device).train(), theirs.to(device).train()


def plain_step(
    network: Callable[[torch.Tensor], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    labels: torch.Tensor,
) -> None:
    cross_entropy(network(images), labels).backward()
    optimizer.step()
    optimizer.zero_grad()


def measure(
    arch: str, optimizer: str, side: int, batch: int, rounds: int, device: str
) -> list[tuple[dict, Ratio]]:
    """Rows of (what, ratio) of one network at one size."""
    ours, theirs = pair_of(arch, device)
    images = torch.randn(batch, 3, side, side, device=device)
    labels = torch.randint(1000, (batch,), device=device)
    samples = [DataSample().set_gt_label(label) for label in labels.tolist()]
    data = dict(inputs=images, data_samples=samples)
    make = OPTIMIZERS[optimizer]
    first, second = make(ours.parameters()), make(theirs.parameters())
    wrapper = OptimWrapper(first)
    modes = {
        'forward': (partial(ours, images), partial(theirs, images)),
        'step': (
            partial(plain_step, ours, first, images, labels),
            partial(plain_step, theirs, second, images, labels),
        ),
        'train_step': (
            partial(ours.train_step, data, wrapper),
            partial(plain_step, theirs, second, images, labels),
        ),
    }
    what = dict(arch=arch, optimizer=optimizer, resolution=side, batch=batch)
    return [
        ({**what, 'mode': mode}, paired(*functions, rounds, device))
        for mode, functions in modes.items()
    ]


def main() -> None:
    parser = arguments(__doc__, rounds=12)
    parser.add_argument('--arch', default='efficientnet-b0', help='of a preset that timm has')
    parser.add_argument('--optimizer', choices=OPTIMIZERS, default='SGD')
    parser.add_argument('--resolution', type=int, default=224, help='in pixels')
    parser.add_argument('--batch', type=int, default=8)
    args: argparse.Namespace = parser.parse_args()
    if args.device == 'cpu':
        torch.set_num_threads(1)
    rows = measure(
        args.arch, args.optimizer, args.resolution, args.batch, args.rounds, args.device
    )
    rows += measure(args.arch, args.optimizer, 32, 2, 4 * args.rounds, args.device)
    show(rows, args)


if __name__ == '__main__':
    main()
