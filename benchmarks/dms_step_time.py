#!/usr/bin/env python
"""Time of a step of differentiable model scaling over that of a plain training step.

Both steps are the whole of what an iteration does on one batch: forward, backward, the optimizer;
the search adds masks, resource loss, importance and the structure's step. They take turns in one
run, so that what else the machine does meets both; the ratio is of medians, and its spread the
quartiles of the ratios of neighbours.
"""

import argparse
import copy
import time
from collections.abc import Callable

import numpy as np
import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import DefaultScope
from mmpretrain.structures import DataSample

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


def timed(step: Callable[[], None], device: str) -> float:
    # On a CPU the time of this process alone, which busy neighbours do not change.
    clock = time.perf_counter if device == 'cuda' else time.process_time
    start = clock()
    step()
    if device == 'cuda':
        torch.cuda.synchronize()
    return clock() - start


def measure(name: str, side: int, batch: int, steps: int, device: str) -> str:
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        plain = MODELS.build(classifier(name, side))
    search = DMSModel(copy.deepcopy(plain), 0.5, input_shape=(3, side, side)).to(device).train()
    search.set_budget(search.goal)
    plain.to(device).train()
    wrappers = {id(model): wrapper_of(model, device) for model in (plain, search)}
    images = torch.randn(batch, 3, side, side, device=device)
    labels = torch.randint(1000, (batch,)).tolist()
    samples = [DataSample().set_gt_label(label).to(device) for label in labels]
    data = dict(inputs=images, data_samples=samples)

    def search_step() -> None:
        wrapper = wrappers[id(search)]
        scale = wrapper.loss_scaler.get_scale() if device == 'cuda' else 1.0
        search.train_step(data, wrapper)
        search.step_structure(scale)

    def plain_step() -> None:
        plain.train_step(data, wrappers[id(plain)])

    seconds = []
    for step in range(steps + 3):
        pair = [(0, plain_step), (1, search_step)]
        times = [0.0, 0.0]
        # Whoever comes second finds warm caches: they take turns in that too.
        for index, function in pair if step % 2 else pair[::-1]:
            times[index] = timed(function, device)
        seconds.append(times)
    plain_times, search_times = np.array(seconds[3:]).T
    ratio = np.median(search_times) / np.median(plain_times)
    low, high = np.quantile(search_times / plain_times, [0.25, 0.75])
    return (
        f'{name:12}{np.median(plain_times) * 1e3:10.1f} ms{np.median(search_times) * 1e3:10.1f} '
        f'ms  ratio {ratio:.3f} ({low:.3f} to {high:.3f})'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--side', type=int, default=96, help='of the images, in pixels')
    parser.add_argument('--batch', type=int, default=16)
    parser.add_argument('--steps', type=int, default=20)
    parser.add_argument('--networks', nargs='+', choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    args = parser.parse_args()
    print(f'{args.batch} images of {args.side} px on {args.device}: plain step, search step')
    for name in args.networks:
        print(measure(name, args.side, args.batch, args.steps, args.device), flush=True)


if __name__ == '__main__':
    main()
