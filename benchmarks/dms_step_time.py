#!/usr/bin/env python
"""Time of a step of differentiable model scaling over that of a plain training step.

Both steps are the whole of what an iteration does on one batch: forward, backward, the optimizer;
the search adds masks, resource loss, importance and the structure's step. Measured in pairs, see
paired.py.
"""

from __future__ import annotations

import argparse
import copy
from functools import partial

import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import DefaultScope
from mmpretrain.structures import DataSample
from paired import Ratio, arguments, paired, show

import mmscale.models  # noqa: F401
from mmscale.models import DMSModel
from mmscale.registry import MODELS

VIT = dict(embed_dims=192, num_layers=12, num_heads=3, feedforward_channels=768)
NETWORKS = {
    'ResNet-18': (dict(type='ResNet', depth=18), 512),
    'ArchNet B0': (dict(type='mmscale.ArchNet', arch='efficientnet-b0'), 1280),
    'DeiT-tiny': (dict(type='VisionTransformer', arch=VIT, patch_size=16), 192),
}


def classifier(name: str, side: int) -> dict:
    backbone, width = NETWORKS[name]
    if 'DeiT' in name:
        backbone = dict(backbone, img_size=side)
        head = dict(type='VisionTransformerClsHead', num_classes=1000, in_channels=width)
        return dict(type='ImageClassifier', backbone=backbone, head=head)
    head = dict(type='LinearClsHead', num_classes=1000, in_channels=width)
    neck = dict(type='GlobalAveragePooling')
    return dict(type='ImageClassifier', backbone=backbone, neck=neck, head=head)


def wrapper_of(model: torch.nn.Module, device: str) -> OptimWrapper:
    weights = [p for name, p in model.named_parameters() if 'pruning_ratio' not in name]
    optimizer = torch.optim.SGD(weights, lr=0.01, momentum=0.9, weight_decay=1e-4)
    return AmpOptimWrapper(optimizer=optimizer) if device == 'cuda' else OptimWrapper(optimizer)


def measure(name: str, side: int, batch: int, rounds: int, device: str) -> Ratio:
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        plain = MODELS.build(classifier(name, side))
    search = DMSModel(copy.deepcopy(plain), 0.5, input_shape=(3, side, side)).to(device).train()
    search.set_budget(search.goal)
    plain.to(device).train()
    search_wrapper, plain_wrapper = (wrapper_of(model, device) for model in (search, plain))
    images = torch.randn(batch, 3, side, side, device=device)
    labels = torch.randint(1000, (batch,)).tolist()
    samples = [DataSample().set_gt_label(label).to(device) for label in labels]
    data = dict(inputs=images, data_samples=samples)

    def search_step() -> None:
        scale = search_wrapper.loss_scaler.get_scale() if device == 'cuda' else 1.0
        search.train_step(data, search_wrapper)
        search.step_structure(scale)

    return paired(search_step, partial(plain.train_step, data, plain_wrapper), rounds, device)


def main() -> None:
    parser = arguments(__doc__, rounds=12)
    parser.add_argument('--resolution', type=int, default=224, help='in pixels')
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--networks', nargs='+', choices=NETWORKS, default=list(NETWORKS))
    args: argparse.Namespace = parser.parse_args()
    if args.device == 'cpu':
        torch.set_num_threads(1)
    rows = []
    for name in args.networks:
        what = dict(network=name, resolution=args.resolution, batch=args.batch)
        ratio = measure(name, args.resolution, args.batch, args.rounds, args.device)
        rows.append((what, ratio))
    show(rows, args)


if __name__ == '__main__':
    main()
