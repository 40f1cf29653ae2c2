"""The embedded detection data set: several handwritten digits of several sizes, as COCO files."""

from __future__ import annotations

import json
import logging
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from mmengine.logging import print_log

from mmscale.datasets.composer import CLASSES, SPLITS, Composite, Composition, ImageSet
from mmscale.errors import FOREIGN_ERRORS
from mmscale.registry import DATASETS

if TYPE_CHECKING:
    from mmdet.datasets import CocoDataset

DETECTION_COMPOSITION = {
    'canvas': 128,
    'digits': (1, 8),
    'digit_size': (12, 44),
    'fragments': (8, 16),
}
"""How an image of the detection data differs from one of the classification data."""

DETECTION_NUM_IMAGES = {'train': 2_000, 'search': 300, 'test': 500}

_ANNOTATIONS = 'annotations.json'
_IMAGES = 'images'


class DetectionFiles:
    """COCO annotations and PNG images of one split of the detection data, made on first use.

    Image ``i`` of a split depends on (seed, split, i, composition) alone. The splits share no
    handwritten original.

    Args:
        split: ``'train'``, ``'search'`` (scores candidates during a search) or ``'test'``.
        num_images: Number of images; by default 2,000 / 300 / 500.
        seed: Seed of the composition. The originals of a split do not depend on it.
        data_root: Folder of the files, made if missing.
        composition: Fields of :class:`~mmscale.datasets.composer.Composition` that differ from
            :data:`DETECTION_COMPOSITION`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        split: str,
        num_images: int | None = None,
        seed: int = 0,
        data_root: str | Path = 'data/digits_detection',
        composition: dict | None = None,
    ) -> None:
        if num_images is None and split in SPLITS:
            num_images = DETECTION_NUM_IMAGES[split]
        composed = Composition(**{**DETECTION_COMPOSITION, **(composition or {})})
        self.source = ImageSet('DigitsDetection', split, num_images, seed, composed)
        self._root = Path(data_root).expanduser()

    @property
    def folder(self) -> Path:
        """Folder of the split; its name says all that its content depends on."""
        return self._root / self.source.name

    @property
    def annotation_file(self) -> Path:
        """COCO annotations."""
        return self.folder / _ANNOTATIONS

    @property
    def image_folder(self) -> Path:
        """PNG images."""
        return self.folder / _IMAGES

    def make(self) -> None:
        """Makes the files, unless they are there and what the composer makes."""
        problem = self._problem()
        if problem is None:
            return
        if self.folder.exists():
            print_log(f'{self.folder} is composed anew: {problem}', 'current', logging.WARNING)
        # Another process may make the same folder: each writes its own, and one rename wins.
        temporary = self._root / f'.{uuid.uuid4().hex}'
        replaced = self._root / f'.{uuid.uuid4().hex}'
        try:
            (temporary / _IMAGES).mkdir(parents=True)
            self._compose(temporary)
            if self.folder.exists() and self._problem() is not None:
                self.folder.rename(replaced)
            try:
                temporary.rename(self.folder)
            except OSError:
                # Only a folder that another process has made meanwhile stands in the way.
                if self._problem() is not None:
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(replaced, ignore_errors=True)

    def _problem(self) -> str | None:
        """Why the files are not those that composing would give, or None if they are."""
        try:
            coco = json.loads(self.annotation_file.read_text(encoding='utf-8'))
            made_of, images = coco['info']['fingerprint'], len(coco['images'])
        except FileNotFoundError:
            return 'it has no annotations'
        except FOREIGN_ERRORS as error:
            return f'its annotations are damaged ({error})'
        if made_of != self.source.fingerprint or images != self.source.num_images:
            return 'it was made with other settings'
        found = sum(1 for _ in self.image_folder.glob('*.png'))
        if found != self.source.num_images:
            return f'it has {found} images'
        for index, composite in self.source.some():
            image = cv2.imread(str(self.image_folder / _name(index)), cv2.IMREAD_UNCHANGED)
            boxes = [a['bbox'] for a in coco['annotations'] if a['image_id'] == index + 1]
            if not np.array_equal(image, composite.image) or boxes != _coco_boxes(composite):
                return f'its image {index} is not what the composer makes now'
        return None

    def _compose(self, folder: Path) -> None:
        """Writes the images and, last, the annotations."""
        side = self.source.composition.canvas
        images, annotations = [], []
        for index, composite in enumerate(self.source.all()):
            path = folder / _IMAGES / _name(index)
            if not cv2.imwrite(str(path), composite.image):
                raise OSError(f'{path} cannot be written')
            # From 1 on: some readers of COCO take an id of 0 for none.
            image_id = index + 1
            images.append(dict(id=image_id, file_name=_name(index), width=side, height=side))
            for label, box, original in zip(
                composite.labels.tolist(),
                _coco_boxes(composite),
                composite.digit_ids.tolist(),
                strict=True,
            ):
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=image_id,
                        category_id=label + 1,
                        bbox=box,
                        area=box[2] * box[3],
                        iscrowd=0,
                        original=original,
                    )
                )
        coco = {
            'info': {
                'description': f'DigitsDetection, {self.source.split} split',
                'fingerprint': self.source.fingerprint,
            },
            'images': images,
            'annotations': annotations,
            'categories': [dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)],
        }
        (folder / _ANNOTATIONS).write_text(json.dumps(coco), encoding='utf-8')


@DATASETS.register_module(name='DigitsDetection')
def digits_detection(
    split: str,
    num_images: int | None = None,
    seed: int = 0,
    data_root: str = 'data/digits_detection',
    composition: dict | None = None,
    **kwargs: Any,
) -> CocoDataset:
    """The detection data as mmdet's ``CocoDataset``; its files are made where they are missing.

    Args:
        split: As for :class:`DetectionFiles`, like the arguments up to `composition`.
        num_images: See there.
        seed: See there.
        data_root: See there.
        composition: See there.
        **kwargs: Arguments of ``mmdet.datasets.CocoDataset``: ``pipeline``, ``test_mode``, ...

    Raises:
        ValueError: If an argument is out of its range.
    """
    # mmdet is an optional requirement.
    from mmdet.datasets import CocoDataset

    files = DetectionFiles(split, num_images, seed, data_root, composition)
    files.make()
    return CocoDataset(
        ann_file=str(files.annotation_file),
        data_prefix=dict(img=str(files.image_folder)),
        metainfo=dict(classes=CLASSES),
        **kwargs,
    )


def _name(index: int) -> str:
    return f'{index:06d}.png'


def _coco_boxes(composite: Composite) -> list[list[int]]:
    """Boxes as x, y, width, height."""
    corners = composite.boxes.astype(int)
    return np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]]).tolist()
