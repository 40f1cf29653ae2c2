"""Scores subnets of a super-supernet as the stand-alone networks that would be shipped."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.runner import Runner
from mmpretrain.models import ImageClassifier
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader

from mmscale.arch import Arch
from mmscale.arch.sampling import SIDES
from mmscale.datasets import SeededDataset
from mmscale.datasets.samplers import Draw
from mmscale.models import SuperNetClassifier
from mmscale.registry import TASK_UTILS
from mmscale.search import Score

Batch = tuple[torch.Tensor, torch.Tensor]

_HANDLING = ('num_workers', 'persistent_workers', 'pin_memory', 'prefetch_factor', 'data_root')


class _Images:
    """Images of a dataset as the network sees them, prepared once per resolution.

    Args:
        dataloader: Config of a data loader whose dataset is a SeededDataset with a pipeline
            without randomness; batch size and workers are taken from it.
        prepare: The model's data preprocessor.
        count: Number of images, evenly spread over the dataset; None for all.
        cache: Whether to keep the images of every resolution in memory.
        key: The setting that `count` comes from, for the error.
    """

    def __init__(
        self,
        dataloader: dict[str, Any],
        prepare: torch.nn.Module,
        count: int | None,
        cache: bool,
        key: str,
    ) -> None:
        self._loader = Runner.build_dataloader(dict(dataloader))
        self._prepare = prepare
        dataset = self._loader.dataset
        if not isinstance(dataset, SeededDataset):
            raise TypeError(
                f'the images of a search need dataset.type=mmscale.SeededDataset, got '
                f'{type(dataset).__name__}'
            )
        size = len(dataset)
        if count is not None and not 1 <= count <= size:
            raise ValueError(f'{key}={count} must lie in 1..{size}, the images there are')
        count = size if count is None else count
        # Datasets are often sorted by class.
        self._indices = [i * size // count for i in range(count)]
        self._cache: dict[int, list[Batch]] | None = {} if cache else None

    def batches(self, resolution: int) -> Iterator[Batch]:
        """Normalised images (N, channels, resolution, resolution) and labels (N,)."""
        if self._cache is None:
            yield from self._load(resolution)
            return
        if resolution not in self._cache:
            self._cache[resolution] = list(self._load(resolution))
        yield from self._cache[resolution]

    def digest(self, resolution: int) -> str:
        """SHA-256 of the first batch: other pixels, labels or normalisation give another."""
        inputs, labels = next(self.batches(resolution))
        digest = hashlib.sha256()
        for tensor in (inputs, labels):
            digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def _load(self, resolution: int) -> Iterator[Batch]:
        loader = self._loader
        for batch in DataLoader(
            loader.dataset,
            batch_size=loader.batch_size,
            sampler=[Draw(index, resolution, index) for index in self._indices],
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
        ):
            data = self._prepare(batch, training=False)
            labels = torch.cat([sample.gt_label for sample in data['data_samples']])
            yield data['inputs'], labels


def content_of(config: Any) -> Any:
    """A config without what changes how images are read, but not the images."""
    if isinstance(config, dict):
        return {k: content_of(v) for k, v in config.items() if k not in _HANDLING}
    if isinstance(config, (list, tuple)):
        return [content_of(item) for item in config]
    return config


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
        TypeError: A loader's dataset is no SeededDataset.
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
            'dataloader': content_of(dataloader),
            'calibration_dataloader': content_of(calibration_dataloader),
            'calibration_images': calibration_images,
            'max_images': max_images,
            'side': side,
            'threads': threads,
        }
        self._images = _Images(
            dataloader, model.data_preprocessor, max_images, cache, 'max_images'
        )
        self._calibration = _Images(
            calibration_dataloader,
            model.data_preprocessor,
            calibration_images,
            cache,
            'calibration_images',
        )

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What the scores depend on: weights, data, settings, kind of device, torch."""
        backbone = self.model.backbone
        resolution = backbone.space.resolution
        return {
            **self._settings,
            'images': self._images.digest(resolution),
            'calibration': self._calibration.digest(resolution),
            'channels_last': backbone.channels_last,
            'weights': weights_digest(self.model),
            'device': next(self.model.parameters()).device.type,
            'torch': torch.__version__,
        }

    def extract(self, arch: Arch) -> ImageClassifier:
        """The stand-alone network that is scored: own weights, BN statistics of its own.

        Raises:
            ValueError: The Arch is not in the super-supernet's space.
        """
        torch.set_num_threads(self.threads)
        net = self.model.extract(arch, self.side)
        net.to(next(self.model.parameters()).device)
        calibration = self._calibration.batches(arch.resolution)
        update_bn((inputs for inputs, _ in calibration), net.backbone)
        return net.eval()

    def evaluate(self, arch: Arch) -> Score:
        """Counts the images that a subnet gets right.

        Raises:
            ValueError: The Arch is not in the super-supernet's space.
        """
        net = self.extract(arch)
        correct = total = 0
        with torch.inference_mode():
            for inputs, labels in self._images.batches(arch.resolution):
                correct += int((net(inputs).argmax(dim=1) == labels).sum())
                total += len(labels)
        return Score(correct, total)
