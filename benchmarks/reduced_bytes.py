#!/usr/bin/env python
"""Bytes of gradients that a step of the super-supernet reduces: SliceParallel against DDP.

Both train the same draws of the sampler, in one process with gloo: what a step hands to the
all-reduce, where it is counted, does not depend on the number of processes. DDP is torch's, with
find_unused_parameters, without which it fails at the second subnet; a communication hook counts
its buckets. Images are shrunk: gradients have the size of the weights, not of the images.
"""

import argparse
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from statistics import mean
from unittest.mock import patch

import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.structures import DataSample
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import mmscale.models  # noqa: F401
from mmscale.arch import HierarchicalSampler
from mmscale.engine import SliceParallel

CONFIGS = Path(__file__).parents[1] / 'configs' / 'scalenet'
IMAGES, RESOLUTION = 2, 32


class Losses(torch.nn.Module):
    """A forward pass that returns the loss, as DDP wants it."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: torch.Tensor, samples: list) -> torch.Tensor:
        return self.model.parse_losses(self.model.subnet_losses(inputs, samples))[0]


def batch(model: torch.nn.Module) -> tuple[torch.Tensor, list]:
    channels = model.backbone.arch.stem.in_channels
    inputs = torch.randn(IMAGES, channels, RESOLUTION, RESOLUTION)
    return inputs, [DataSample().set_gt_label(label) for label in range(IMAGES)]


def measure(name: str, steps: int) -> dict[str, list[int]]:
    """Bytes per step of either wrapper."""
    config = Config.fromfile(CONFIGS / name)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(config.model).train()
    hook = config.custom_hooks[0]
    sampler = HierarchicalSampler(
        model.backbone.space, seed=0, distribution=hook.distribution, sides=hook.sides
    )
    sliced = SliceParallel(model)
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.0))
    buckets: list[int] = []
    reduced: list[int] = []
    all_reduce = distributed.all_reduce

    def reduce(tensor: torch.Tensor) -> None:
        reduced.append(tensor.nbytes)
        all_reduce(tensor)

    def count(_: None, bucket: distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
        buckets.append(bucket.buffer().nbytes)
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    ddp = DistributedDataParallel(Losses(deepcopy(model)), find_unused_parameters=True)
    ddp.register_comm_hook(None, count)
    result: dict[str, list[int]] = {'SliceParallel': [], 'DDP': []}
    for step in range(steps):
        draw = sampler.draw(step)
        # Past the warm-up, in which the largest subnet trains alone.
        iteration = model.warmup_iters + step
        for trained in (model, ddp.module.model):
            small = replace(draw.arch, resolution=RESOLUTION)
            trained.set_draw(replace(draw, arch=small), iteration)
        inputs, samples = batch(model)
        buckets.clear()
        ddp(inputs, samples).backward()
        result['DDP'].append(sum(buckets))
        reduced.clear()
        with patch.object(distributed, 'all_reduce', reduce):
            sliced.train_step(dict(inputs=inputs, data_samples=samples), wrapper)
        result['SliceParallel'].append(sum(reduced))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--steps', type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(1)
    store = distributed.HashStore()
    distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    for name in ('supernet_32xb8_in1k.py', 'supernet_digits.py'):
        bytes_ = measure(name, args.steps)
        slices, ddp = mean(bytes_['SliceParallel']), mean(bytes_['DDP'])
        print(
            f'{name}: mean of {args.steps} steps: SliceParallel {slices / 2**20:.2f} MiB '
            f'({min(bytes_["SliceParallel"]) / 2**20:.2f} to '
            f'{max(bytes_["SliceParallel"]) / 2**20:.2f}), DDP {ddp / 2**20:.2f} MiB, '
            f'ratio {slices / ddp:.3f}'
        )
    distributed.destroy_process_group()


if __name__ == '__main__':
    main()
