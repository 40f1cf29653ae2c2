"""What images are, whichever way they are read: digests of pixels, targets and annotations."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement

# Labels (N,) of a classifier's images, or a detector's data samples.
Targets = torch.Tensor | list

# Images that a digest, and a file on the disk, is of.
SHARD = 512

_READ_BYTES = 2**20


def bytes_of(tensor: torch.Tensor) -> np.ndarray:
    """The bytes of a tensor, as a flat array."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()


def _plain(value: object) -> Any:
    return value.tolist() if isinstance(value, (np.ndarray, torch.Tensor)) else str(value)


def _target_bytes(target: torch.Tensor | BaseDataElement) -> Any:
    """A label, or what a data sample says of its image, but for where that lies."""
    if torch.is_tensor(target):
        return bytes_of(target if target.is_floating_point() else target.long())
    known = {key: value for key, value in target.metainfo_items() if not key.endswith('_path')}
    return json.dumps(known, sort_keys=True, default=_plain).encode()


class ContentDigest:
    """SHA-256 of images and their targets, however many come at a time.

    Of every ``SHARD`` images there is a digest of its own: pixels first, then targets, which is
    what a file on the disk has as its checksum.
    """

    def __init__(self) -> None:
        self._shards: list[str] = []
        self._count = 0
        self._begin()

    def _begin(self) -> None:
        self._pixels = hashlib.sha256()
        self._targets: list[Any] = []

    def see(self, images: torch.Tensor | Sequence[torch.Tensor], targets: Targets) -> None:
        """Counts a batch.

        Args:
            images: (N, channels, H, W), or N of (channels, H, W), as the pipeline packs them.
            targets: Labels (N,), or N data samples.
        """
        for image, target in zip(images, targets, strict=True):
            self._pixels.update(bytes_of(image))
            self._targets.append(_target_bytes(target))
            self._count += 1
            if len(self._targets) == SHARD:
                self._end()

    def _end(self) -> None:
        for target in self._targets:
            self._pixels.update(target)
        self.add(self._pixels.hexdigest())
        self._begin()

    def add(self, checksum: str) -> None:
        """Counts the next ``SHARD`` images, or the last ones, by their digest."""
        self._shards.append(checksum)

    def hexdigest(self) -> str:
        """The digest of all; nothing can be counted any more."""
        if self._targets:
            self._end()
        return hashlib.sha256(' '.join(self._shards).encode()).hexdigest()


def _parts_of(dataset: Any) -> Iterator[Any]:
    """A dataset, and those inside its wrappers."""
    yield dataset
    inner = getattr(dataset, 'datasets', None)
    inner = list(inner) if isinstance(inner, (list, tuple)) else []
    for part in [*inner, getattr(dataset, 'dataset', None)]:
        if part is not None and part is not dataset:
            yield from _parts_of(part)


def annotations_digest(dataset: Any) -> str:
    """SHA-256 of the annotation files of a dataset and of those inside it; not of their places."""
    digests: dict[str, str] = {}
    for part in _parts_of(dataset):
        path = getattr(part, 'ann_file', None)
        if isinstance(path, (str, os.PathLike)) and os.path.isfile(path):
            path = os.fspath(path)
            if path not in digests:
                digests[path] = _file_digest(path)
    return hashlib.sha256(' '.join(digests.values()).encode()).hexdigest()


def _file_digest(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while part := file.read(_READ_BYTES):
            digest.update(part)
    return digest.hexdigest()
