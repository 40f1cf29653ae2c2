"""The images that candidates are scored and calibrated with, read once per resolution."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from mmscale.datasets import Draw, accept_draws, build_dataloader, item_of
from mmscale.engine.calibration import even_batches
from mmscale.engine.content import ContentDigest, Targets, annotations_digest, bytes_of
from mmscale.engine.image_store import ImageStore, Pixels
from mmscale.engine.train_data import check_size, check_sizes
from mmscale.errors import UsageError
from mmscale.search.scoring import Communicator, SingleProcess

Batch = tuple[torch.Tensor, Targets]

# Settings of data loaders and data sets that change how images are read, but not the images.
HANDLING = frozenset(
    {'num_workers', 'persistent_workers', 'pin_memory', 'prefetch_factor', 'data_root'}
)


# Where images and annotations lie, which says nothing where their content is known.
PLACES = frozenset({'ann_file', 'data_prefix'})


def content_of(config: Any, without: Collection[str] = HANDLING) -> Any:
    """A config without what changes how images are read, but not the images; classes by name."""
    if isinstance(config, dict):
        return {k: content_of(v, without) for k, v in config.items() if k not in without}
    if isinstance(config, (list, tuple)):
        return [content_of(item, without) for item in config]
    if isinstance(config, (type, FunctionType)):
        return f'{config.__module__}.{config.__qualname__}'
    return config


class _Batches:
    """A batch sampler whose batches are set anew for every pass, as persistent workers need it."""

    def __init__(self) -> None:
        self.batches: list[list[Draw]] = []

    def __iter__(self) -> Iterator[list[Draw]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class Images:
    """Images of a dataset as the network sees them, prepared once per resolution.

    Args:
        dataloader: Config of a data loader whose pipeline, of whatever dataset, is without
            randomness; batch size and workers are taken from it.
        prepare: The model's data preprocessor.
        count: Number of images, evenly spread over the dataset; None for all.
        key: The setting that `count` comes from, for the error.
        name: The setting that the data loader comes from, for the error.
        targets_of: Takes what is to be predicted from the data samples of a batch.
        even: Whether batches are of equal sizes, as BN layers need that normalise with them.
        cache: Where the images of every resolution are kept: True for memory, normalised; False
            for nowhere; or ``disk``, as uint8.
        cache_dir: Folder of the images on the disk.
        cache_bytes: What they may take there.

    Attributes:
        size: How many images the dataset has.
    """

    def __init__(
        self,
        dataloader: dict[str, Any],
        prepare: torch.nn.Module,
        count: int | None,
        key: str,
        name: str,
        targets_of: Callable[[list], Targets],
        even: bool,
        cache: bool | str,
        cache_dir: Path,
        cache_bytes: int,
    ) -> None:
        self._targets_of = targets_of
        self._even = even
        self._loader = build_dataloader(dict(dataloader))
        self._prepare = prepare
        self._name = name
        self.size = size = len(self._loader.dataset)
        accept_draws(self._loader.dataset)
        if count is not None and not 1 <= count <= size:
            raise UsageError(f'{key}={count} must lie in 1..{size}, the images there are')
        count = size if count is None else count
        # Datasets are often sorted by class.
        self._indices = [i * size // count for i in range(count)]
        self._cache: dict[int, list[Batch]] | None = {} if cache is True else None
        # By resolution: of the images as the pipeline packs them, and of the first batch.
        self._contents: dict[int, str] = {}
        self.batch_size = self._loader.batch_size or self._loader.batch_sampler.batch_size
        self._draws = _Batches()
        # Workers that start anew for every pass take longer than a small network.
        self._reader = self._make_reader(self._draws, persistent=cache is False)
        self._store = None
        if cache == 'disk':
            self._store = ImageStore(
                cache_dir, self._key(dataloader), count, self._pixels, cache_bytes, name
            )

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def metainfo(self) -> dict[str, Any]:
        """Meta information of the dataset."""
        return self._loader.dataset.metainfo

    @property
    def has_single_images(self) -> bool:
        """Whether there is a batch of one image."""
        return any(len(batch) == 1 for batch in self._batches())

    def _batches(self) -> list[list[int]]:
        """Positions of the images of every batch, from 0; consecutive."""
        items, size = range(len(self)), self.batch_size
        if self._even:
            return even_batches(items, size)
        return [list(items[i : i + size]) for i in range(0, len(items), size)]

    def batches(self, resolution: int) -> Iterator[Batch]:
        """Normalised images (N, channels, resolution, resolution), and their targets."""
        if self._cache is not None:
            if resolution not in self._cache:
                self._cache[resolution] = list(self._load_all(resolution))
            yield from self._cache[resolution]
        elif self._stored(resolution):
            for positions in self._batches():
                images, labels = self._store.read(resolution, positions[0], positions[-1] + 1)
                inputs = self._prepare({'inputs': torch.from_numpy(images)})['inputs']
                yield inputs, torch.from_numpy(labels).to(inputs.device)
        else:
            if self._store is not None and not self._reader.persistent_workers:
                # There is no room on the disk: this pass is not the only one.
                self._reader = self._make_reader(self._draws, persistent=True)
            yield from self._load(resolution)

    def _stored(self, resolution: int) -> bool:
        """Whether the images of a resolution are on the disk; makes them if they may be."""
        self.store(resolution, SingleProcess())
        return self._store is not None and self._store.holds(resolution)

    def store(self, resolution: int, ranks: Communicator) -> None:
        """Makes the images of a resolution on the disk, if they are kept there, with all ranks."""
        if self._store is not None:
            self._store.make(resolution, ranks)

    def check_sizes(self, resolutions: Collection[int]) -> None:
        """Checks that images come at the resolutions that they will be asked for at.

        Raises:
            UsageError: They do not.
        """
        check_sizes(self._loader.dataset, resolutions, f'{self._name}.dataset')

    def prepare(self, resolution: int) -> int:
        """Fills the cache with a resolution, if there is one.

        Returns:
            Bytes of memory that it takes; on the disk they take none.
        """
        if self._cache is None:
            self.store(resolution, SingleProcess())
            return 0
        return sum(
            inputs.nbytes + getattr(targets, 'nbytes', 0)
            for inputs, targets in self.batches(resolution)
        )

    def digest(self, resolution: int) -> str:
        """SHA-256 of all images: other pixels, targets or annotations give another.

        It covers the pixels of every image at one resolution as the pipeline packs them, what is
        to be predicted, the annotation files whole, and the first batch as it is normalised. It
        is the same wherever images are kept and whatever folder they lie in. Images that are
        kept are not decoded for it a second time; others are, once.

        Args:
            resolution: In pixels.
        """
        if resolution not in self._contents:
            if self._stored(resolution):
                content = ContentDigest()
                for checksum in self._store.checksums(resolution):
                    content.add(checksum)
                first, _ = next(self.batches(resolution))
                self._contents[resolution] = self._digest_of(content, first)
            elif self._cache is not None:
                self.prepare(resolution)
            else:
                for _ in self._load_all(resolution):
                    pass
        return self._contents[resolution]

    def _digest_of(self, content: ContentDigest, first: torch.Tensor) -> str:
        digest = hashlib.sha256(bytes_of(first))
        digest.update(content.hexdigest().encode())
        digest.update(annotations_digest(self._loader.dataset).encode())
        return digest.hexdigest()

    def _load_all(self, resolution: int) -> Iterator[Batch]:
        """Reads all images, as :meth:`_load`; at their end their digest is known."""
        content, first = ContentDigest(), None
        for inputs, targets in self._load(resolution, content):
            first = inputs if first is None else first
            yield inputs, targets
        self._contents[resolution] = self._digest_of(content, first)

    def _load(self, resolution: int, content: ContentDigest | None = None) -> Iterator[Batch]:
        """Reads all images, and normalises them; a digest sees them before."""
        for batch in self._read(resolution, self._batches()):
            if content is not None:
                content.see(batch['inputs'], self._targets_of(batch['data_samples']))
            data = self._prepare(batch, training=False)
            yield data['inputs'], self._targets_of(data['data_samples'])

    def _read(self, resolution: int, batches: Sequence[Sequence[int]]) -> Iterator[dict]:
        """Batches of images at some positions as the pipeline packs and the loader collates."""
        self._draws.batches = [
            [Draw(self._indices[i], resolution, self._indices[i]) for i in positions]
            for positions in batches
        ]
        reader: Iterable[dict] = self._reader
        if sum(map(len, batches)) == 1:
            # Starting workers takes longer.
            (draw,) = self._draws.batches[0]
            reader = [self._loader.collate_fn([item_of(self._loader.dataset, draw)])]
        try:
            for batch in reader:
                check_size(batch['inputs'], resolution, f'{self._name}.dataset')
                yield batch
        except RuntimeError as error:
            if 'shared memory' not in str(error):
                raise
            raise OSError(
                f'num_workers={self._loader.num_workers}: the shared memory (/dev/shm) is too '
                'small for processes that read images; set num_workers=0 in the data loaders, or '
                'enlarge it'
            ) from error

    def _make_reader(self, draws: _Batches, persistent: bool) -> DataLoader:
        loader = self._loader
        workers = loader.num_workers
        return DataLoader(
            loader.dataset,
            batch_sampler=draws,
            num_workers=workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            prefetch_factor=loader.prefetch_factor if workers else None,
            persistent_workers=persistent and workers > 0,
        )

    def _pixels(self, resolution: int, positions: Sequence[int]) -> Iterator[Pixels]:
        """Images at some positions as they are kept on the disk.

        Raises:
            UsageError: They are no uint8, or have something else than one label each.
        """
        size = self.batch_size
        batches = [positions[i : i + size] for i in range(0, len(positions), size)]
        for batch in self._read(resolution, batches):
            inputs, targets = batch['inputs'], self._targets_of(batch['data_samples'])
            inputs = inputs if torch.is_tensor(inputs) else torch.stack(inputs)
            if inputs.dtype != torch.uint8:
                raise UsageError(
                    f"cache='disk' keeps images as uint8, and the pipeline of "
                    f'{self._name}.dataset packs {inputs.dtype}: leave normalising to the data '
                    'preprocessor, or take cache=True (memory) or False'
                )
            if not torch.is_tensor(targets) or targets.shape != inputs.shape[:1]:
                raise UsageError(
                    f"cache='disk' keeps one label an image, and those of {self._name} have "
                    'something else: take cache=True (memory) or False'
                )
            yield inputs.numpy(), targets.numpy()

    def _key(self, dataloader: dict[str, Any]) -> str:
        """SHA-256 of what the images are made of: config of the dataset, and its files."""
        config = content_of(dataloader.get('dataset'))
        digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
        dataset = self._loader.dataset
        if not hasattr(dataset, 'get_data_info'):
            raise UsageError(
                f"cache='disk' would not notice when the images of {self._name} change, as "
                f'{type(dataset).__name__} has no get_data_info: take cache=True (memory) or False'
            )
        for index in self._indices:
            info = dataset.get_data_info(index)
            path, label, pixels = info.get('img_path', ''), info.get('gt_label'), info.get('img')
            version = ''
            if path and os.path.isfile(path):
                status = os.stat(path)
                # Uncompressed images always have the same size.
                version = f'{status.st_size} {status.st_mtime_ns}'
            digest.update(f'{index} {path} {version} {label}\n'.encode(errors='replace'))
            if isinstance(pixels, np.ndarray):
                digest.update(np.ascontiguousarray(pixels).tobytes())
        return digest.hexdigest()
