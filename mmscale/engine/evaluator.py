"""Scores subnets of a super-supernet as the stand-alone networks that would be shipped."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.runner import Runner
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader

from mmscale.arch import Arch
from mmscale.arch.sampling import SIDES
from mmscale.datasets.samplers import Draw
from mmscale.models import SuperNetClassifier
from mmscale.registry import TASK_UTILS
from mmscale.search import Score


class _Images:
    """The first images of a dataset, decoded once per resolution.

    Args:
        dataloader: Config of a data loader whose dataset is a SeededDataset with a pipeline
            without randomness; batch size and workers are taken from it.
        count: Number of images; None for all.
        cache: Whether to keep the decoded images of every resolution in memory.
    """

    def __init__(self, dataloader: dict[str, Any], count: int | None, cache: bool) -> None:
        self.loader = Runner.build_dataloader(dict(dataloader))
        size = len(self.loader.dataset)
        if count is not None and not 1 <= count <= size:
            raise ValueError(f'number of images={count} must lie in 1..{size}')
        self.count = size if count is None else count
        self._cache: dict[int, list[dict]] | None = {} if cache else None

    def batches(self, resolution: int) -> Iterator[dict]:
        """Batches of ``inputs`` (N, channels, resolution, resolution) and ``data_samples``."""
        if self._cache is None:
            yield from self._load(resolution)
            return
        if resolution not in self._cache:
            self._cache[resolution] = list(self._load(resolution))
        yield from self._cache[resolution]

    def _load(self, resolution: int) -> Iterator[dict]:
        draws = [Draw(index, resolution, index) for index in range(self.count)]
        loader = self.loader
        yield from DataLoader(
            loader.dataset,
            batch_size=loader.batch_size,
            sampler=draws,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
        )


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 of a model's parameters and buffers, independent of file formats."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@TASK_UTILS.register_module()
class SubnetEvaluator:
    """Extracts a subnet, recalibrates its BN statistics and counts the images it gets right.

    The statistics of the super-supernet belong to no subnet, so they are measured anew on a
    fixed set of training images. The images that score are none of those, and no test images.

    Args:
        model: The trained super-supernet.
        dataloader: Config of the loader of scoring images.
        calibration_dataloader: Config of the loader of training images for the statistics.
        calibration_images: Number of those images.
        max_images: Number of scoring images; None for all.
        side: Side of the channel coupling.
        threads: CPU threads; float results depend on it, so it is fixed and recorded.
        cache: Whether to keep decoded images in memory, one set per resolution.

    Raises:
        ValueError: A setting is not allowed.
    """

    def __init__(
        self,
        model: SuperNetClassifier,
        dataloader: dict[str, Any],
        calibration_dataloader: dict[str, Any],
        calibration_images: int = 1024,
        max_images: int | None = None,
        side: str = 'left',
        threads: int = 1,
        cache: bool = True,
    ) -> None:
        if side not in SIDES:
            raise ValueError(f'side={side!r} is not one of {", ".join(SIDES)}')
        if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
            raise ValueError(f'threads={threads!r} must be a positive integer')
        self.model = model
        self.side = side
        self.threads = threads
        self._settings = {
            'dataloader': dataloader,
            'calibration_dataloader': calibration_dataloader,
            'calibration_images': calibration_images,
            'max_images': max_images,
            'side': side,
            'threads': threads,
        }
        self._images = _Images(dataloader, max_images, cache)
        self._calibration = _Images(calibration_dataloader, calibration_images, cache)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What the scores depend on: weights, data, settings, kind of device, torch."""
        return {
            **self._settings,
            'weights': weights_digest(self.model),
            'device': next(self.model.parameters()).device.type,
            'torch': torch.__version__,
        }

    def evaluate(self, arch: Arch) -> Score:
        """Counts the images that a subnet gets right.

        Raises:
            ValueError: The Arch is not in the super-supernet's space.
        """
        torch.set_num_threads(self.threads)
        net = self.model.extract(arch, self.side)
        net.to(next(self.model.parameters()).device)
        prepare = net.data_preprocessor
        update_bn(
            (
                prepare(batch, training=False)['inputs']
                for batch in self._calibration.batches(arch.resolution)
            ),
            net.backbone,
        )
        net.eval()
        correct = total = 0
        with torch.inference_mode():
            for batch in self._images.batches(arch.resolution):
                data = prepare(batch, training=False)
                labels = torch.cat([sample.gt_label for sample in data['data_samples']])
                predicted = net(data['inputs']).argmax(dim=1)
                correct += int((predicted == labels).sum())
                total += len(labels)
        return Score(correct, total)
