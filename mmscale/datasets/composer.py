"""Composes images of real handwritten digits among clutter, with labels and boxes.

The handwriting is scikit-learn's copy of the UCI *Optical Recognition of Handwritten Digits*
test set: 1,797 originals of 8 x 8 pixels. The composer knows nothing of datasets, caches or
training.
"""

import functools
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import NamedTuple

import cv2
import numpy as np
from mmengine.dist import is_main_process
from rich.progress import track

from mmscale.arch.checks import choice, integer
from mmscale.errors import UsageError

SPLITS = ('train', 'search', 'test')

COMPOSER_VERSION = 1
"""Raised whenever the same (seed, split, index, composition) gives other pixels than before."""

CLASSES = tuple('0123456789')

# Of five originals of a class, in file order: three train, one searches, one tests.
_SPLIT_OF_REMAINDER = ('train', 'train', 'train', 'search', 'test')
_UPSAMPLING = 4
# Side of an upsampled original without the border of one original pixel around it.
_GLYPH_SIDE = 8 * _UPSAMPLING
# Ink reaches at most half an original pixel beyond the 8 x 8 square: 9 / 8 of its side.
_INK_EXTENT = 9 / 8
_INK_THRESHOLD = 64
_PLACEMENT_ATTEMPTS = 32


class Originals(NamedTuple):
    """Handwritten originals of one split.

    Attributes:
        glyphs: uint8, (N, 40, 40): smoothly upsampled originals with a blank border, ink 255.
        labels: int64, (N,): the digit each glyph shows.
        ids: int64, (N,): row of each glyph in ``sklearn.datasets.load_digits``.
    """

    glyphs: np.ndarray
    labels: np.ndarray
    ids: np.ndarray


class Composite(NamedTuple):
    """One composed image, what it shows, and what it was made of.

    Attributes:
        image: uint8, (canvas, canvas), gray.
        labels: int64, (D,): digit shown by each box.
        boxes: float32, (D, 4): x1, y1, x2, y2 in pixels, right and bottom exclusive, tight
            around the digit's own ink.
        digit_ids: int64, (D,): the originals of the labelled digits.
        fragment_ids: int64, (F,): the originals the fragments were cut from.
    """

    image: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    digit_ids: np.ndarray
    fragment_ids: np.ndarray


@dataclass(frozen=True)
class Composition:
    """How images are composed; every range is inclusive and drawn from uniformly.

    Attributes:
        canvas: Side of the square image, pixels.
        digits: Fewest and most labelled digits in an image.
        digit_size: Smallest and largest side of a digit before rotation, pixels.
        fragments: Fewest and most unlabelled digit fragments in an image.
        fragment_extent: Side of a fragment's cut-out relative to the whole digit.
        rotation: Largest rotation of a digit to either side, degrees; fragments turn freely.
        shear: Largest horizontal shear of a digit to either side.
        contrast: Brightness of ink, of digits and fragments alike; 1 is white.
        background: Gray value of the blank canvas.
        noise: Standard deviation of the Gaussian pixel noise, gray values.

    Raises:
        ValueError: If a range is empty or out of bounds, or the largest digit could exceed the
            canvas.
    """

    canvas: int = 48
    digits: tuple[int, int] = (1, 1)
    digit_size: tuple[float, float] = (14, 26)
    fragments: tuple[int, int] = (8, 12)
    fragment_extent: tuple[float, float] = (0.3, 0.65)
    rotation: float = 25.0
    shear: float = 0.25
    contrast: tuple[float, float] = (0.5, 0.85)
    background: tuple[float, float] = (10, 40)
    noise: tuple[float, float] = (5, 20)

    def __post_init__(self) -> None:
        lowest = {'digits': 1, 'digit_size': 8, 'fragments': 0, 'fragment_extent': 0.1}
        highest = {'fragment_extent': 1, 'contrast': 1, 'background': 255}
        # Together fewer than the originals of the smallest split: none appears twice.
        highest |= {'digits': 100, 'fragments': 200}
        for name in ('digits', 'digit_size', 'fragments', 'fragment_extent', 'contrast',
                     'background', 'noise'):  # fmt: skip
            low, high = getattr(self, name)
            smallest, largest = lowest.get(name, 0), highest.get(name, math.inf)
            if not smallest <= low <= high <= largest:
                raise UsageError(
                    f'composition: {name}={(low, high)} must be (low, high) with '
                    f'{smallest} <= low <= high <= {largest}'
                )
            # Lists from config files are welcome, but the dataclass has to stay hashable.
            object.__setattr__(self, name, (low, high))
        if not (0 <= self.rotation <= 45 and 0 <= self.shear <= 1):
            raise UsageError(
                f'composition: rotation={self.rotation} and shear={self.shear} must lie in '
                f'[0, 45] degrees and [0, 1]'
            )
        angle = math.radians(self.rotation)
        width = (1 + self.shear) * math.cos(angle) + math.sin(angle)
        needed = math.ceil(_INK_EXTENT * width * self.digit_size[1]) + 2
        if self.canvas < needed:
            raise UsageError(
                f'composition: canvas={self.canvas} is too small for digit_size='
                f'{self.digit_size} rotated by up to {self.rotation} degrees; at least {needed}'
            )


@dataclass(frozen=True)
class ImageSet:
    """The images of one split: image ``i`` depends on (seed, split, i, composition) alone.

    Attributes:
        owner: Whose settings they are, for errors.
        split: One of :data:`SPLITS`.
        num_images: 1 or more.
        seed: 0 or more.
        composition: How they are composed.

    Raises:
        ValueError: One is not allowed.
    """

    owner: str
    split: str
    num_images: int
    seed: int
    composition: Composition

    def __post_init__(self) -> None:
        choice(f'{self.owner}: split', self.split, SPLITS)
        integer(f'{self.owner}: num_images', self.num_images)
        integer(f'{self.owner}: seed', self.seed, 0)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that the images depend on."""
        contents = {
            'version': COMPOSER_VERSION,
            'split': self.split,
            'seed': self.seed,
            'num_images': self.num_images,
            'composition': asdict(self.composition),
        }
        return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()

    @property
    def name(self) -> str:
        """A name for their files, which says all that they depend on."""
        return (
            f'{self.split}-seed{self.seed}-{self.num_images}x{self.composition.canvas}px'
            f'-v{COMPOSER_VERSION}-{self.fingerprint[:12]}'
        )

    def some(self) -> Iterator[tuple[int, Composite]]:
        """A few of them with their indices: what has changed in code or libraries shows there."""
        for index in sorted({0, self.num_images // 2, self.num_images - 1}):
            yield index, compose_image(self.seed, self.split, index, self.composition)

    def all(self, silent: bool = False) -> Iterator[Composite]:
        """All of them in order, with a bar of progress on the first process."""
        for index in track(
            range(self.num_images),
            description=f'Composing {self.num_images} {self.split} images',
            disable=silent or not is_main_process(),
            transient=True,
        ):
            yield compose_image(self.seed, self.split, index, self.composition)


@functools.lru_cache(maxsize=len(SPLITS))
def load_originals(split: str) -> Originals:
    """Load the originals of one split; the three splits share none.

    The sets are stratified by class and depend on nothing, no seed included: what is a test
    original once is never trained on.

    Raises:
        ValueError: If the split is unknown.
    """
    if split not in SPLITS:
        raise UsageError(f'split={split!r} is unknown; allowed are {SPLITS}')
    # Imported here because it takes a second that users of other datasets should not pay.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    ids = []
    for label in range(len(CLASSES)):
        of_class = np.flatnonzero(bunch.target == label)
        for remainder, owner in enumerate(_SPLIT_OF_REMAINDER):
            if owner == split:
                ids.append(of_class[remainder :: len(_SPLIT_OF_REMAINDER)])
    ids = np.sort(np.concatenate(ids))
    padded = np.pad(bunch.images[ids].astype(np.float32), ((0, 0), (1, 1), (1, 1)))
    glyphs = np.stack([_upsample(image) for image in padded])
    return Originals(glyphs, bunch.target[ids].astype(np.int64), ids.astype(np.int64))


def compose_image(
    seed: int, split: str, index: int, composition: Composition | None = None
) -> Composite:
    """Compose image ``index`` of a split: a pure function of its arguments.

    Versions of OpenCV interpolate differently: gray values change then, and a digit may move by
    a pixel, but the originals stay the same.

    Raises:
        ValueError: If the split is unknown, or the seed or index is negative.
    """
    if seed < 0 or index < 0:
        raise UsageError(f'seed={seed} and index={index} must not be negative')
    originals = load_originals(split)
    sequence = np.random.SeedSequence(seed, spawn_key=(SPLITS.index(split), index))
    return compose(np.random.default_rng(sequence), originals, composition or Composition())


def compose(rng: np.random.Generator, originals: Originals, composition: Composition) -> Composite:
    """Compose one image: whole digits are labelled, fragments of other originals distract.

    Fragments lie anywhere, also across digits and the canvas' edge. Digits lie wholly inside
    the canvas, and apart from each other as far as the canvas has room.
    """
    num_digits = _draw_count(rng, composition.digits)
    num_fragments = _draw_count(rng, composition.fragments)
    total = num_digits + num_fragments
    chosen = rng.choice(len(originals.ids), total, replace=False)
    glyphs = originals.glyphs[chosen]
    rotation = np.radians(composition.rotation) * rng.uniform(-1, 1, total)
    rotation[num_digits:] = rng.uniform(-np.pi, np.pi, num_fragments)
    shear = composition.shear * rng.uniform(-1, 1, total)
    size = rng.uniform(*composition.digit_size, total)
    contrast = rng.uniform(*composition.contrast, total)
    matrices = _matrices(rotation, shear, size / _GLYPH_SIDE)
    windows = rng.uniform(*composition.fragment_extent, (num_fragments, 2)) * _GLYPH_SIDE
    windows = windows.astype(np.int64)
    window_corners = rng.random((num_fragments, 2)) * (glyphs.shape[-1] + 1 - windows)
    window_corners = window_corners.astype(np.int64)
    centers = rng.random((num_fragments, 2)) * composition.canvas

    ink = np.zeros((composition.canvas, composition.canvas), np.uint8)
    boxes = np.zeros((num_digits, 4), np.float32)
    for i in range(num_digits):
        patch = _warp(glyphs[i], matrices[i])
        x, y, width, height = cv2.boundingRect((patch >= _INK_THRESHOLD).view(np.uint8))
        room = np.array((composition.canvas - width, composition.canvas - height)) + 1
        corners = (rng.random((_PLACEMENT_ATTEMPTS, 2)) * room).astype(np.int64)
        left, top = _least_overlapping(corners, (width, height), boxes[:i])
        boxes[i] = left, top, left + width, top + height
        _paint(ink, patch, left - x, top - y, contrast[i])
    for i in range(num_fragments):
        (left, top), (width, height) = window_corners[i], windows[i]
        window = glyphs[num_digits + i, top : top + height, left : left + width]
        patch = _warp(window, matrices[num_digits + i])
        x, y = (centers[i] - np.array(patch.shape[::-1]) / 2).astype(np.int64)
        _paint(ink, patch, x, y, contrast[num_digits + i])

    noise = rng.standard_normal(ink.shape, np.float32) * rng.uniform(*composition.noise)
    noise += rng.uniform(*composition.background)
    image = cv2.add(ink, noise, dtype=cv2.CV_8U)
    digits, fragments = chosen[:num_digits], chosen[num_digits:]
    return Composite(
        image, originals.labels[digits], boxes, originals.ids[digits], originals.ids[fragments]
    )


def _upsample(image: np.ndarray) -> np.ndarray:
    glyph = cv2.resize(
        image * (255 / 16), None, fx=_UPSAMPLING, fy=_UPSAMPLING, interpolation=cv2.INTER_CUBIC
    )
    return np.clip(np.rint(glyph), 0, 255).astype(np.uint8)


def _draw_count(rng: np.random.Generator, bounds: tuple[int, int]) -> int:
    return int(rng.integers(*bounds, endpoint=True))


def _matrices(rotation: np.ndarray, shear: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Scaled rotations of horizontal shears, (N, 2, 2), for column vectors (x, y)."""
    cos, sin = np.cos(rotation), np.sin(rotation)
    rows = [[cos, cos * shear - sin], [sin, sin * shear + cos]]
    return (scale * np.array(rows)).transpose(2, 0, 1)


def _warp(glyph: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Map a glyph by a 2 x 2 matrix about its centre, onto a patch just large enough."""
    shape = np.array(glyph.shape[::-1], np.float64)
    extent = np.ceil(np.abs(matrix) @ shape).astype(np.int64) + 1
    affine = np.empty((2, 3))
    affine[:, :2] = matrix
    affine[:, 2] = (extent - 1) / 2 - matrix @ ((shape - 1) / 2)
    return cv2.warpAffine(glyph, affine, tuple(extent.tolist()), flags=cv2.INTER_LINEAR)


def _least_overlapping(
    corners: np.ndarray, size: tuple[int, int], boxes: np.ndarray
) -> tuple[int, int]:
    """The first of the corners whose box of this size shares least area with the boxes."""
    if len(boxes) == 0:
        return tuple(corners[0].tolist())
    upper = np.minimum(corners[:, None] + size, boxes[None, :, 2:])
    lower = np.maximum(corners[:, None], boxes[None, :, :2])
    overlap = np.maximum(upper - lower, 0).prod(axis=2).sum(axis=1)
    return tuple(corners[overlap.argmin()].tolist())


def _paint(ink: np.ndarray, patch: np.ndarray, left: int, top: int, contrast: float) -> None:
    """Lighten ``ink`` by a patch that lies at least partly on it."""
    height, width = patch.shape
    patch = patch[max(0, -top) : ink.shape[0] - top, max(0, -left) : ink.shape[1] - left]
    target = ink[max(0, top) : top + height, max(0, left) : left + width]
    np.maximum(target, cv2.convertScaleAbs(patch, alpha=contrast), out=target)
