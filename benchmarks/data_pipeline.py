#!/usr/bin/env python
"""Time of loading ImageNet-like JPEGs for training, and its share beside a training step.

Writes JPEGs of quality 90, cuttings of scikit-learn's two photographs, and loads them through
the pipeline of the super-supernet's ImageNet config, one process, one thread. ``reduced / whole``
is that pipeline over the same with stock loading (decode all of it, then crop): seconds are of
one image, and the mean absolute difference between what both give is of pixels in 0 to 255.
``load / step`` is the first pipeline over a training step of ScaleNet-S0, for a batch: how many
processes must load for one that trains. Measured in pairs, see paired.py.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope
from mmpretrain.structures import DataSample
from paired import Ratio, arguments, paired, show
from sklearn.datasets import load_sample_images

import mmscale.models  # noqa: F401
from mmscale.datasets import Draw, SeededDataset
from mmscale.registry import MODELS

PIPELINES = {
    'reduced': [dict(type='mmscale.LoadRandomResizedCropToResolution')],
    'whole': [
        dict(type='LoadImageFromFile'),
        dict(type='mmscale.RandomResizedCropToResolution'),
    ],
}
QUALITY = 90


def write_jpegs(folder: Path, count: int, width: int, height: int) -> None:
    """Writes cuttings of the photographs, drawn at random and resized."""
    random = np.random.default_rng(0)
    photographs = load_sample_images().images
    for number in range(count):
        image = photographs[number % len(photographs)][..., ::-1]
        share = random.uniform(0.7, 1.0) * min(image.shape[0] / height, image.shape[1] / width)
        rows, columns = int(share * height), int(share * width)
        top = random.integers(image.shape[0] - rows + 1)
        left = random.integers(image.shape[1] - columns + 1)
        part = image[top : top + rows, left : left + columns]
        part = cv2.resize(part, (width, height), interpolation=cv2.INTER_CUBIC)
        path = folder / 'class' / f'{number:04}.jpg'
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), part, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])


def loader_of(kind: str, folder: Path, resolution: int) -> Callable[[], list[dict]]:
    """A function that loads all images of a folder, as a worker does."""
    pipeline = [*PIPELINES[kind], dict(type='PackInputs')]
    dataset = dict(type='CustomDataset', data_root=str(folder), pipeline=pipeline)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        images = SeededDataset(dataset)
        images.full_init()
    draws = [Draw(index, resolution, index) for index in range(len(images))]

    def load() -> list[dict]:
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            return [images[draw] for draw in draws]

    return load


def difference(first: list[dict], second: list[dict]) -> tuple[float, float]:
    """Mean absolute difference of pixels, of images that differ, and the share of these."""
    found = [
        (one['inputs'].float() - other['inputs'].float()).abs().mean().item()
        for one, other in zip(first, second, strict=True)
    ]
    differing = [value for value in found if value > 0]
    return float(np.mean(differing or [0.0])), len(differing) / len(found)


def step_of(resolution: int, batch: int, device: str) -> Callable[[], object]:
    """A training step of ScaleNet-S0 on random images."""
    config = dict(
        type='ImageClassifier',
        backbone=dict(type='mmscale.ArchNet', arch='scalenet-s0'),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=1000, in_channels=1280),
    )
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(config).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    samples = [DataSample().set_gt_label(0).to(device) for _ in range(batch)]
    images = torch.randn(batch, 3, resolution, resolution, device=device)
    data = dict(inputs=images, data_samples=samples)
    return partial(model.train_step, data, OptimWrapper(optimizer))


def measure(size: tuple[int, int], args: argparse.Namespace) -> list[tuple[dict, Ratio]]:
    """Rows of (what, ratio) for JPEGs of one size; their seconds are of one image."""
    with tempfile.TemporaryDirectory() as folder:
        write_jpegs(Path(folder), args.images, *size)
        load, whole = (loader_of(kind, Path(folder), args.resolution) for kind in PIPELINES)
        pixels, share = difference(load(), whole())
        decoding = paired(load, whole, args.rounds, args.device)
        step = step_of(args.resolution, args.batch, args.device)
        beside = paired(load, step, args.rounds, args.device)
    what = dict(jpegs=f'{size[0]}x{size[1]}', resolution=args.resolution)
    rows = []
    for name, ratio, counts in (
        ('reduced / whole', decoding, (args.images, args.images)),
        ('load / step', beside, (args.images, args.batch)),
    ):
        seconds = tuple(s / n for s, n in zip(ratio.seconds, counts, strict=True))
        scale = counts[1] / counts[0]
        quartiles = (ratio.quartiles[0] * scale, ratio.quartiles[1] * scale)
        found = Ratio(ratio.ratio * scale, quartiles, seconds, ratio.rounds)
        rate = [round(1 / s) for s in seconds]
        rows.append(({**what, 'mode': name, 'images_per_second': rate}, found))
    rows[0][0].update(decoded_smaller=round(share, 3), mean_absolute_difference=round(pixels, 2))
    return rows


def main() -> None:
    parser = arguments(__doc__, rounds=8)
    parser.add_argument('--sizes', nargs='+', default=['500x375', '1600x1200'], help='of JPEGs')
    parser.add_argument('--images', type=int, default=200, help='JPEGs of each size')
    parser.add_argument('--resolution', type=int, default=224, help='in pixels')
    parser.add_argument('--batch', type=int, default=8, help='of the training step')
    args = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    rows = []
    for size in args.sizes:
        width, height = map(int, size.split('x'))
        rows += measure((width, height), args)
    show(rows, args)


if __name__ == '__main__':
    main()
