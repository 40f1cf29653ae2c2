"""Decoded images on the disk: made once by all ranks together, mapped by each, kept for later.

A set of images at one resolution lies in files of ``SHARD`` images each:

* a header of ``HEADER`` bytes: what the file is, the digest of what it was made of, the shape of
  its images, and the SHA-256 of all that follows; zeros up to its end;
* the images, uint8, (N, channels, resolution, resolution);
* the labels, int64.

A file takes its name once it is whole, so that several runs may make the same one. What lies in a
work dir may come from anybody: a file is used if its size, its header, its checksum and its first
image are what they have to be, and otherwise made anew.
"""

from __future__ import annotations

import hashlib
import logging
import math
import mmap
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mmengine.logging import print_log

from mmscale.engine.content import SHARD
from mmscale.errors import one_line
from mmscale.files import atomic_write, being_written
from mmscale.search.scoring import Communicator
from mmscale.untrusted import UntrustedFileError, open_regular

# A multiple of what a page of memory has.
HEADER = 4096
# What is left on the disk for archive, logs and weights.
SPARE_BYTES = 2**30

# Images (N, channels, resolution, resolution), uint8, and their labels (N,), int64.
Pixels = tuple[np.ndarray, np.ndarray]
# Makes the images at some positions, at a resolution, some at a time.
Decode = Callable[[int, Sequence[int]], Iterable[Pixels]]


class Shard(NamedTuple):
    """What a file holds, mapped into memory, and the SHA-256 of it."""

    images: np.ndarray
    labels: np.ndarray
    checksum: str


def _title(key: str, shape: Sequence[int]) -> bytes:
    return f'mmscale images 2 {key} {"x".join(map(str, shape))} '.encode()


def _bytes_of(shape: Sequence[int]) -> int:
    return HEADER + 8 * shape[0] + math.prod(shape)


def write_shard(path: Path, key: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Writes a file of images.

    Args:
        path: The file.
        key: Digest of what they were made of.
        images: (N, channels, H, W), uint8.
        labels: (N,), int64.

    Raises:
        OSError: The disk is full, or cannot be written to.
    """
    digest = hashlib.sha256(images.data)
    digest.update(labels.data)
    header = _title(key, images.shape) + digest.hexdigest().encode()
    # Processes of several machines may write the same file to the same disk.
    with atomic_write(path, shared=True) as file:
        file.write(header.ljust(HEADER, b'\0'))
        file.write(images.data)
        file.write(labels.data)


def open_shard(path: Path, key: str, shape: Sequence[int]) -> Shard:
    """Maps a file of images into memory.

    Args:
        path: The file.
        key: As it was written with.
        shape: (N, channels, H, W) that it must have.

    Raises:
        FileNotFoundError: There is no such file.
        UntrustedFileError: It is another, or damaged.
    """
    with open_regular(path) as file:
        size, expected = os.fstat(file.fileno()).st_size, _bytes_of(shape)
        if size != expected:
            raise UntrustedFileError(f'it has {size:,} bytes where {expected:,} are due')
        content = memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))
    title = _title(key, shape)
    if bytes(content[: len(title)]) != title:
        raise UntrustedFileError('it was made of something else')
    digest = hashlib.sha256(content[HEADER:]).hexdigest()
    if bytes(content[len(title) : HEADER]) != digest.encode().ljust(HEADER - len(title), b'\0'):
        raise UntrustedFileError('its checksum is wrong')
    images = np.frombuffer(content, np.uint8, math.prod(shape), HEADER)
    labels = np.frombuffer(content, np.int64, shape[0], HEADER + images.nbytes)
    return Shard(images.reshape(shape), labels, digest)


class ImageStore:
    """The images of one data loader, at every resolution at which there is room for them.

    Args:
        folder: Where the files lie; made if missing.
        key: Digest of what the images are made of, but for the resolution.
        count: Number of images.
        decode: Makes images.
        most_bytes: What all files in the folder may take.
        name: What the images are, for the log.
    """

    def __init__(
        self, folder: Path, key: str, count: int, decode: Decode, most_bytes: int, name: str
    ) -> None:
        self._folder = folder
        self._key = key
        self._decode = decode
        self._most_bytes = most_bytes
        self._name = name
        self._positions = [
            range(start, min(start + SHARD, count)) for start in range(0, count, SHARD)
        ]
        # By resolution; None where there is no room.
        self._shards: dict[int, list[Shard] | None] = {}
        # Files that this process wrote for the last resolution: others may be another run's.
        self._written: list[Path] = []

    def holds(self, resolution: int) -> bool:
        """Whether the images of a resolution can be read, which :meth:`make` sees to."""
        return self._shards.get(resolution) is not None

    def is_known(self, resolution: int) -> bool:
        """Whether it was tried to make the images of a resolution."""
        return resolution in self._shards

    def read(self, resolution: int, start: int, stop: int) -> Pixels:
        """Copies of the images of a resolution from position `start` to before `stop`."""
        shards = self._shards[resolution]
        images, labels = [], []
        for i in range(start // SHARD, (stop - 1) // SHARD + 1):
            part = slice(max(start - i * SHARD, 0), stop - i * SHARD)
            images.append(shards[i].images[part])
            labels.append(shards[i].labels[part])
        return np.concatenate(images), np.concatenate(labels)

    def checksums(self, resolution: int) -> list[str]:
        """SHA-256 of the images of a resolution and their labels, of each file."""
        return [shard.checksum for shard in self._shards[resolution]]

    def make(self, resolution: int, ranks: Communicator) -> None:
        """Makes the images of a resolution, or maps those that were made; with all ranks at once.

        Where there is no room for them, a line says so, and nothing is kept.

        Raises:
            UsageError: An image cannot be decoded, or is no uint8.
        """
        if resolution in self._shards:
            return
        self._shards[resolution] = None
        first, _ = self._decode_one(resolution, 0)
        shape = first.shape
        # The first rank decides for all, as files may come while others count them.
        reason = self._no_room(resolution, shape) if ranks.rank == 0 else ''
        reason = ranks.gather([reason])[0][0]
        made: dict[int, Shard] | str = {}
        if not reason:
            mine = range(ranks.rank, len(self._positions), ranks.world_size)
            made = self._open_or_make(resolution, shape, mine)
            reasons = ranks.gather([made if isinstance(made, str) else ''])
            reason = next((text for (text,) in reasons if text), '')
            if reason:
                reason += self._remove_written()
        if not reason:
            # What others have made; where their disk is another one, it is made here too.
            others = [i for i in range(len(self._positions)) if i not in made]
            rest = self._open_or_make(resolution, shape, others)
            if isinstance(rest, str):
                reason = rest
            else:
                found = made | rest
                self._shards[resolution] = [found[i] for i in range(len(self._positions))]
        if reason:
            print_log(
                f'{self._name}: images of {resolution} px are decoded for every network anew: '
                f'{reason}',
                'current',
                logging.WARNING,
            )

    def _decode_one(self, resolution: int, position: int) -> tuple[np.ndarray, int]:
        (images, labels), *_ = self._decode(resolution, [position])
        return images[0], labels[0]

    def _path(self, resolution: int, shard: int) -> Path:
        return self._folder / f'{self._key[:16]}_{resolution}px_{shard:04d}.images'

    def _remove_written(self) -> str:
        """Removes the files that were written last; what it says if one stays."""
        try:
            for path in self._written:
                path.unlink(missing_ok=True)
        except OSError as error:
            return f'; {one_line(error)}'
        return ''

    def _no_room(self, resolution: int, shape: Sequence[int]) -> str:
        """Why the images of a resolution cannot be kept; nothing if they can."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            there = {}
            partial = being_written(self._folder, '*.images')
            for path in (*self._folder.glob('*.images'), *partial):
                # Another run may have removed or renamed it meanwhile.
                with suppress(FileNotFoundError):
                    there[path.name] = path.lstat().st_size
            free = shutil.disk_usage(self._folder).free
        except OSError as error:
            return one_line(error)
        needed = sum(
            _bytes_of((len(positions), *shape))
            for i, positions in enumerate(self._positions)
            if self._path(resolution, i).name not in there
        )
        if not needed:
            return ''
        held = sum(there.values())
        if held + needed > self._most_bytes:
            return (
                f'they take {needed:,} bytes, and of cache_bytes={self._most_bytes:,} '
                f'{held:,} are in use in {self._folder}, where files of data that is not used '
                'any more may be removed'
            )
        if needed + SPARE_BYTES > free:
            return f'they take {needed:,} bytes, and {self._folder} has {free:,} left'
        return ''

    def _open_or_make(
        self, resolution: int, shape: Sequence[int], shards: Iterable[int]
    ) -> dict[int, Shard] | str:
        """The files of some numbers; or why one cannot be written."""
        found = {i: self._opened(resolution, shape, i) for i in shards}
        missing = [i for i, shard in found.items() if shard is None]
        self._written = []
        for i, (images, labels) in zip(missing, self._made(resolution, missing), strict=True):
            path = self._path(resolution, i)
            try:
                write_shard(path, self._key, images, labels)
                self._written.append(path)
                # Another run may have removed it meanwhile.
                found[i] = open_shard(path, self._key, images.shape)
            except UntrustedFileError:
                raise
            except OSError as error:
                return one_line(error)
        return found

    def _opened(self, resolution: int, shape: Sequence[int], shard: int) -> Shard | None:
        path, positions = self._path(resolution, shard), self._positions[shard]
        try:
            found = open_shard(path, self._key, (len(positions), *shape))
            first, label = self._decode_one(resolution, positions[0])
            if label != found.labels[0] or not np.array_equal(first, found.images[0]):
                raise UntrustedFileError('its first image is not what the pipeline makes now')
        except FileNotFoundError:
            return None
        except (UntrustedFileError, OSError) as error:
            print_log(f'{path} is made anew: {one_line(error)}', 'current', logging.WARNING)
            return None
        return found

    def _made(self, resolution: int, shards: Sequence[int]) -> Iterator[Pixels]:
        """The images of some files, decoded in one go."""
        positions = [i for shard in shards for i in self._positions[shard]]
        batches = iter(self._decode(resolution, positions) if positions else ())
        images, labels = [], []
        have = 0
        for shard in shards:
            due = len(self._positions[shard])
            while have < due:
                some, their_labels = next(batches)
                images.append(some)
                labels.append(their_labels)
                have += len(some)
            whole, all_labels = np.concatenate(images), np.concatenate(labels)
            yield whole[:due], np.ascontiguousarray(all_labels[:due], np.int64)
            images, labels = [whole[due:]], [all_labels[due:]]
            have -= due
