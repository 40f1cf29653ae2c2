"""Scores subnets of a super-supernet as the stand-alone networks that would be shipped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from fractions import Fraction
from types import FunctionType
from typing import Any

import numpy as np
import torch
from mmengine.model import BaseModel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from mmscale.arch import Arch
from mmscale.arch.checks import choice, integer
from mmscale.arch.sampling import SIDES
from mmscale.datasets import Draw, accept_draws, build_dataloader
from mmscale.engine.calibration import Item, even_batches, recalibrate
from mmscale.engine.train_data import check_size, check_sizes
from mmscale.errors import UsageError, one_line
from mmscale.models import SuperNetTraining
from mmscale.registry import TASK_UTILS
from mmscale.search import EvaluationError, Score

# Labels (N,) of a classifier's images, or a detector's data samples.
Targets = torch.Tensor | list
Batch = tuple[torch.Tensor, Targets]

_STATISTICS = ('recalibrated', 'batch')

# How torch says that memory is out: CUDA, and the CPU's allocator.
_OUT_OF_MEMORY = ('out of memory', "can't allocate memory", 'not enough memory')

# Settings of data loaders and data sets that change how images are read, but not the images.
HANDLING = frozenset(
    {'num_workers', 'persistent_workers', 'pin_memory', 'prefetch_factor', 'data_root'}
)


class _Images:
    """Images of a dataset as the network sees them, prepared once per resolution.

    Args:
        dataloader: Config of a data loader whose pipeline, of whatever dataset, is without
            randomness; batch size and workers are taken from it.
        prepare: The model's data preprocessor.
        count: Number of images, evenly spread over the dataset; None for all.
        cache: Whether to keep the images of every resolution in memory.
        key: The setting that `count` comes from, for the error.
        name: The setting that the data loader comes from, for the error.
        targets_of: Takes what is to be predicted from the data samples of a batch.
        even: Whether batches are of equal sizes, as BN layers need that normalise with them.
    """

    def __init__(
        self,
        dataloader: dict[str, Any],
        prepare: torch.nn.Module,
        count: int | None,
        cache: bool,
        key: str,
        name: str,
        targets_of: Callable[[list], Targets],
        even: bool,
    ) -> None:
        self._targets_of = targets_of
        self._even = even
        self._loader = build_dataloader(dict(dataloader))
        self._prepare = prepare
        self._name = name
        size = len(self._loader.dataset)
        accept_draws(self._loader.dataset)
        if count is not None and not 1 <= count <= size:
            raise UsageError(f'{key}={count} must lie in 1..{size}, the images there are')
        count = size if count is None else count
        # Datasets are often sorted by class.
        self._indices = [i * size // count for i in range(count)]
        self._cache: dict[int, list[Batch]] | None = {} if cache else None
        self.batch_size = self._loader.batch_size or self._loader.batch_sampler.batch_size

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def metainfo(self) -> dict[str, Any]:
        """Meta information of the dataset."""
        return self._loader.dataset.metainfo

    @property
    def has_single_images(self) -> bool:
        """Whether there is a batch of one image."""
        return any(len(batch) == 1 for batch in self._batches(self._indices))

    def _batches(self, items: list[Item]) -> list[list[Item]]:
        if self._even:
            return even_batches(items, self.batch_size)
        return [items[i : i + self.batch_size] for i in range(0, len(items), self.batch_size)]

    def batches(self, resolution: int) -> Iterator[Batch]:
        """Normalised images (N, channels, resolution, resolution), and their targets."""
        if self._cache is None:
            yield from self._load(resolution)
            return
        if resolution not in self._cache:
            self._cache[resolution] = list(self._load(resolution))
        yield from self._cache[resolution]

    def check_sizes(self, resolutions: Collection[int]) -> None:
        """Checks that images come at the resolutions that they will be asked for at.

        Raises:
            UsageError: They do not.
        """
        check_sizes(self._loader.dataset, resolutions, f'{self._name}.dataset')

    def prepare(self, resolution: int) -> int:
        """Fills the cache with a resolution, if there is one; returns the bytes that it takes."""
        if self._cache is None:
            return 0
        return sum(
            inputs.nbytes + getattr(targets, 'nbytes', 0)
            for inputs, targets in self.batches(resolution)
        )

    def digest(self, resolution: int) -> str:
        """SHA-256 of the first batch: other pixels, targets or normalisation give another."""
        inputs, targets = next(self.batches(resolution))
        digest = hashlib.sha256(_bytes_of(inputs))
        if torch.is_tensor(targets):
            digest.update(_bytes_of(targets))
        else:
            instances = [sample.metainfo['instances'] for sample in targets]
            digest.update(json.dumps(instances).encode())
        return digest.hexdigest()

    def _load(self, resolution: int) -> Iterator[Batch]:
        loader = self._loader
        batches = DataLoader(
            loader.dataset,
            batch_sampler=self._batches(
                [Draw(index, resolution, index) for index in self._indices]
            ),
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
        )
        try:
            for batch in batches:
                check_size(batch['inputs'], resolution, f'{self._name}.dataset')
                data = self._prepare(batch, training=False)
                yield data['inputs'], self._targets_of(data['data_samples'])
        except RuntimeError as error:
            if 'shared memory' not in str(error):
                raise
            raise OSError(
                f'num_workers={loader.num_workers}: the shared memory (/dev/shm) is too small for '
                f'processes that read images; set num_workers=0 in the data loaders, or enlarge it'
            ) from error


def _bytes_of(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()


def content_of(config: Any) -> Any:
    """A config without what changes how images are read, but not the images; classes by name."""
    if isinstance(config, dict):
        return {k: content_of(v) for k, v in config.items() if k not in HANDLING}
    if isinstance(config, (list, tuple)):
        return [content_of(item) for item in config]
    if isinstance(config, (type, FunctionType)):
        return f'{config.__module__}.{config.__qualname__}'
    return config


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 of a model's parameters and buffers, independent of file formats."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


@contextmanager
def out_of_memory_is_of_the_candidate() -> Iterator[None]:
    """Turns running out of memory into a failure of the one network that is evaluated.

    Raises:
        EvaluationError: The device or the machine ran out of memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = ' '.join(str(error).split())
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and not any(
            words in text for words in _OUT_OF_MEMORY
        ):
            raise
        raise EvaluationError(f'out of memory: {text:.200}') from error


@TASK_UTILS.register_module()
class SubnetEvaluator:
    """Extracts a subnet, recalibrates its BN statistics and counts the images it gets right.

    The statistics of the super-supernet belong to no subnet, so they are measured anew on a
    fixed set of training images. The images that score are none of those, and no test images.

    With ``bn='batch'`` every batch of scored images is normalised by its own statistics, as the
    released ScaleNet does, and nothing is calibrated. This is for comparison: it is transductive
    (an image's prediction depends on the other images of its batch), so the score depends on
    the batch size and is not that of a network that could be shipped.

    Args:
        model: The trained super-supernet.
        dataloader: Config of the loader of scoring images.
        calibration_dataloader: Config of the loader of training images for the statistics.
        calibration_images: Number of those images.
        max_images: Number of scoring images; None for all.
        side: Side of the channel coupling, ``left`` or ``right``; or ``both``: two networks are
            extracted, and their logits averaged.
        bn: Statistics that BN layers normalise with, ``recalibrated`` or ``batch``.
        threads: CPU threads; float results depend on it, so it is fixed and recorded.
        cache: Whether to keep decoded images in memory, one set per resolution.

    Attributes:
        images_seen: Images that were scored so far.
        images_saved: Images that were not, because enough others were wrong.

    Raises:
        ValueError: A setting is not allowed.
    """

    def __init__(
        self,
        model: SuperNetTraining,
        dataloader: dict[str, Any],
        calibration_dataloader: dict[str, Any],
        calibration_images: int = 1024,
        max_images: int | None = None,
        side: str = 'left',
        bn: str = 'recalibrated',
        threads: int = 1,
        cache: bool = True,
    ) -> None:
        choice('side', side, (*SIDES, 'both'))
        choice('bn', bn, _STATISTICS)
        integer('threads', threads)
        self.model = model
        self.sides = SIDES if side == 'both' else (side,)
        self.bn = bn
        self.threads = threads
        self.images_seen = self.images_saved = 0
        self._settings = {
            'dataloader': content_of(dataloader),
            'max_images': max_images,
            'side': side,
            'bn': bn,
            'threads': threads,
        }
        if bn == 'recalibrated':
            self._settings |= {
                'calibration_dataloader': content_of(calibration_dataloader),
                'calibration_images': calibration_images,
            }
        self._images = _Images(
            dataloader,
            model.data_preprocessor,
            max_images,
            cache,
            'max_images',
            'test_dataloader',
            self.targets_of,
            even=bn == 'batch',
        )
        self._calibration = _Images(
            calibration_dataloader,
            model.data_preprocessor,
            calibration_images,
            cache,
            'calibration_images',
            'calibration_dataloader',
            self.targets_of,
            even=True,
        )
        for images in self._images, self._calibration:
            images.check_sizes(model.backbone.space.resolutions)
        for name, images in (
            ('test_dataloader', self._images if bn == 'batch' else None),
            ('calibration_dataloader', self._calibration),
        ):
            if images is not None and images.has_single_images:
                self._check_single_images(name)

    def _check_single_images(self, name: str) -> None:
        """Refuses batches of one image where maps of 1 x 1 leave BN layers one value each."""
        space = self.model.backbone.space
        stage = min(
            range(len(space.scaling_stages)),
            key=lambda j: space.scaling_stages[j].resolution[0],
        )
        arch = space.smallest(stage)
        part = self.normalised_part(self._raw(arch, self.sides[0])).train()
        images = next(self._calibration.batches(arch.resolution))[0][:1]
        try:
            with torch.no_grad():
                part(images)
        except ValueError as error:
            raise UsageError(
                f'{name}: BN layers cannot take statistics of one image at {arch.resolution} px '
                f'({one_line(error):.100}): take a batch_size of 2 or more, and as many images'
            ) from None

    @staticmethod
    def targets_of(data_samples: list) -> Targets:
        """What is to be predicted: labels (N,)."""
        return torch.cat([sample.gt_label for sample in data_samples])

    @staticmethod
    def normalised_part(net: BaseModel) -> torch.nn.Module:
        """The part of a network whose BN statistics are recalibrated; maps images to anything."""
        return net.backbone

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What the scores depend on: weights, data, settings, kind of device, torch."""
        backbone = self.model.backbone
        resolution = backbone.space.resolution
        images = {'images': self._images.digest(resolution)}
        if self.bn == 'recalibrated':
            images['calibration'] = self._calibration.digest(resolution)
        return {
            **self._settings,
            **images,
            'channels_last': backbone.channels_last,
            'weights': weights_digest(self.model),
            'device': next(self.model.parameters()).device.type,
            'torch': torch.__version__,
        }

    def extract(self, arch: Arch) -> BaseModel:
        """The stand-alone network to ship: own weights, recalibrated BN statistics of its own.

        It is the network that is scored, unless the settings say that the scored one cannot be
        shipped: of two sides it is the left one, and its statistics are never a batch's.

        Raises:
            ValueError: The Arch is not in the super-supernet's space.
        """
        return self._recalibrated(arch, self.sides[0])

    def prepare(self, resolution: int) -> int:
        """Reads the images of a resolution into memory, where they are kept there.

        Returns:
            Bytes that they take.
        """
        used = [self._images]
        if self.bn == 'recalibrated':
            used.append(self._calibration)
        return sum(images.prepare(resolution) for images in used)

    def _raw(self, arch: Arch, side: str) -> BaseModel:
        torch.set_num_threads(self.threads)
        return self.model.extract(arch, side).to(next(self.model.parameters()).device)

    def _recalibrated(self, arch: Arch, side: str) -> BaseModel:
        net = self._raw(arch, side)
        calibration = self._calibration.batches(arch.resolution)
        recalibrate(self.normalised_part(net), (inputs for inputs, _ in calibration))
        return net.eval()

    def _scored(self, arch: Arch, side: str) -> BaseModel:
        if self.bn == 'recalibrated':
            return self._recalibrated(arch, side)
        net = self._raw(arch, side).eval()
        for module in net.modules():
            if isinstance(module, _BatchNorm):
                module.train()
        return net

    def evaluate(self, arch: Arch, needed: Fraction | None = None) -> Score | None:
        """Counts the images that a subnet gets right.

        Args:
            arch: The subnet.
            needed: The score that is of interest at least; by default any.

        Returns:
            The score; or None, once so many images are wrong that it is below `needed`.

        Raises:
            EvaluationError: This network cannot be scored: memory is out, or its logits are not
                finite.
            OSError: Images cannot be read.
            ValueError: The Arch is not in the super-supernet's space.
        """
        with out_of_memory_is_of_the_candidate():
            return self._evaluate(arch, needed)

    def _evaluate(self, arch: Arch, needed: Fraction | None) -> Score | None:
        nets = [self._scored(arch, side) for side in self.sides]
        total = len(self._images)
        least = 0 if needed is None else needed * total
        correct = seen = 0
        with torch.inference_mode():
            for inputs, labels in self._images.batches(arch.resolution):
                if correct + total - seen < least:
                    self.images_saved += total - seen
                    return None
                logits = torch.stack([net(inputs) for net in nets]).mean(dim=0)
                if not logits.isfinite().all():
                    raise EvaluationError('logits that are not finite')
                correct += int((logits.argmax(dim=1) == labels).sum())
                seen += len(labels)
                self.images_seen += len(labels)
        return Score(correct, total)
