"""The embedded default data set: one handwritten digit somewhere among fragments of others."""

import logging
import tokenize
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import print_log
from mmpretrain.datasets import BaseDataset

from mmscale.datasets.composer import CLASSES, SPLITS, Composition, ImageSet
from mmscale.errors import FOREIGN_ERRORS, UsageError
from mmscale.files import atomic_write
from mmscale.registry import DATASETS

DEFAULT_NUM_IMAGES = {'train': 20_000, 'search': 3_000, 'test': 4_000}

# More images than this take seconds to compose, so that progress is worth showing.
_SILENT_IMAGES = 5_000

# What np.load raises for damaged files, found by flipping every bit of the headers.
_DAMAGE = (*FOREIGN_ERRORS, EOFError, tokenize.TokenError, zipfile.BadZipFile)


@DATASETS.register_module()
class ClutteredDigits(BaseDataset):
    """Composed images of one handwritten digit among clutter; ten classes, gray, uint8.

    Images are made on first use in seconds (see :mod:`mmscale.datasets.composer`) and cached in
    one file. Image ``i`` of a split depends on (seed, split, i) alone, so a smaller
    ``num_images`` is a prefix of a larger one. The splits share no handwritten original.

    An item has ``img`` (H, W), ``img_shape``, ``ori_shape``, ``gt_label`` and ``sample_idx``.

    Args:
        split: ``'train'``, ``'search'`` (scores candidates during a search) or ``'test'``.
        num_images: Number of images; by default 20,000 / 3,000 / 4,000.
        seed: Seed of the composition. The originals of a split do not depend on it.
        data_root: Folder of the cache file, made if missing.
        composition: Fields of :class:`~mmscale.datasets.composer.Composition` that differ from
            its defaults; an image must show exactly one digit.
        **kwargs: Arguments of :class:`mmpretrain.datasets.BaseDataset`: ``pipeline``,
            ``metainfo``, ``test_mode``, ``indices``, ...

    Raises:
        ValueError: If an argument is out of its range.
    """

    METAINFO = {'classes': CLASSES}

    def __init__(
        self,
        split: str,
        num_images: int | None = None,
        seed: int = 0,
        data_root: str = 'data/cluttered_digits',
        composition: dict | None = None,
        **kwargs: Any,
    ) -> None:
        if num_images is None and split in SPLITS:
            num_images = DEFAULT_NUM_IMAGES[split]
        composed = Composition(**(composition or {}))
        self.source = ImageSet('ClutteredDigits', split, num_images, seed, composed)
        if composed.digits != (1, 1):
            raise UsageError(
                f'ClutteredDigits: composition digits={composed.digits} must be (1, 1): '
                'an image has one label'
            )
        self.images: np.ndarray
        # Of an item there are two integers: pickling tens of thousands takes longer than it saves.
        kwargs.setdefault('serialize_data', False)
        super().__init__(ann_file='', data_root=str(data_root), **kwargs)

    def load_data_list(self) -> list[dict]:
        """Load the cached images, composing them first where there is no valid cache."""
        self.images, labels = self._load_cache() or self._compose()
        return [{'image_index': i, 'gt_label': label} for i, label in enumerate(labels.tolist())]

    def get_data_info(self, idx: int) -> dict:
        """Image and label of one item, the image being the caller's own copy."""
        info = super().get_data_info(idx)
        img = self.images[info.pop('image_index')].copy()
        return {**info, 'img': img, 'img_shape': img.shape, 'ori_shape': img.shape}

    def extra_repr(self) -> list[str]:
        """Lines that ``repr`` adds."""
        split, seed = self.source.split, self.source.seed
        return [f'Split: \t{split}', f'Seed: \t{seed}', f'Cache: \t{self.cache_file}']

    @property
    def cache_file(self) -> Path:
        """File of the composed images; its name says all that they depend on."""
        return Path(self.data_root).expanduser() / f'{self.source.name}.npz'

    def _load_cache(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Images and labels of the cache file, or None if it is missing, damaged or stale."""
        try:
            # Reading a member checks its CRC-32, so damage anywhere in the arrays is noticed.
            with np.load(self.cache_file, allow_pickle=False) as cache:
                images, labels = cache['images'], cache['labels']
                made_of = str(cache['fingerprint'])
        except FileNotFoundError:
            return None
        except _DAMAGE as error:
            problem = f'it is damaged ({error})'
        else:
            problem = self._staleness(images, labels, made_of)
        if problem is None:
            return images, labels
        print_log(f'{self.cache_file} is composed anew: {problem}', 'current', logging.WARNING)
        return None

    def _staleness(self, images: np.ndarray, labels: np.ndarray, made_of: str) -> str | None:
        """Why the arrays of a readable cache file are not those that composing would give."""
        source, count = self.source, self.source.num_images
        canvas = source.composition.canvas
        if made_of != source.fingerprint:
            return 'it was made with other settings'
        if images.shape != (count, canvas, canvas) or images.dtype != np.uint8:
            return f'its images have shape {images.shape} and type {images.dtype}'
        if labels.shape != (count,):
            return f'its labels have shape {labels.shape}'
        for index, expected in source.some():
            if labels[index] != expected.labels[0] or not np.array_equal(
                images[index], expected.image
            ):
                return f'its image {index} is not what the composer makes now'
        return None

    def _compose(self) -> tuple[np.ndarray, np.ndarray]:
        """Compose all images and write the cache file in one atomic step."""
        source, count = self.source, self.source.num_images
        images = np.empty((count, *[source.composition.canvas] * 2), np.uint8)
        labels = np.empty(count, np.int64)
        for i, composite in enumerate(source.all(silent=count <= _SILENT_IMAGES)):
            images[i], labels[i] = composite.image, composite.labels[0]

        with atomic_write(self.cache_file, shared=True) as file:
            np.savez(file, images=images, labels=labels, fingerprint=source.fingerprint)
        return images, labels
