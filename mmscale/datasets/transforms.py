"""Transforms whose output size is the resolution drawn by the sampler.

Each takes the first resolution that there is of ``results['resolution']``; the draw whose image is
being loaded; its own ``resolution``, which may also be set as an attribute later; and that of the
:class:`~mmscale.models.ArchNet` that this process had built when it built the transform. So the
same pipeline serves supernet training, where every batch has another resolution, and everything
else.
"""

import io
import logging
import math
from typing import Any

import cv2
import mmcv
import numpy as np
from mmcv.transforms import BaseTransform, CenterCrop
from mmengine import fileio
from mmengine.logging import print_log
from mmpretrain.datasets.transforms import RandomResizedCrop, ResizeEdge

from mmscale.datasets.draws import drawn_resolution
from mmscale.errors import FOREIGN_ERRORS, UsageError
from mmscale.input_size import noted_resolution
from mmscale.registry import TRANSFORMS

# Shares of their sides at which libjpeg decodes images, and how OpenCV calls them.
_REDUCED = {
    8: cv2.IMREAD_REDUCED_COLOR_8,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    1: cv2.IMREAD_COLOR,
}
# Values of EXIF's orientation that lay an image on its side.
_ON_ITS_SIDE = (5, 6, 7, 8)


def _resolution_of(transform: BaseTransform, results: dict) -> int:
    own = (results.get('resolution'), drawn_resolution(), transform.resolution, transform.noted)
    resolution = next((side for side in own if side is not None), None)
    if resolution is None:
        print_log(
            f'{type(transform).__name__}: nobody says a resolution (no sampler, no hook, no '
            'network, no resolution=...): the short side of the image is taken',
            'current',
            logging.WARNING,
        )
        # What a tool that only shows a dataset sees from here on.
        transform.noted = resolution = min(results['img'].shape[:2])
    _check(transform, resolution)
    return resolution


def _check(transform: BaseTransform, resolution: int | None) -> None:
    if resolution is not None and resolution < 1:
        raise UsageError(f'{type(transform).__name__}: resolution={resolution} must be >= 1')


class _ToResolution(BaseTransform):
    def __repr__(self) -> str:
        settings = ', '.join(f'{key}={value!r}' for key, value in vars(self).items())
        return f'{type(self).__name__}({settings})'


@TRANSFORMS.register_module()
class ResizeToResolution(_ToResolution):
    """Resize the whole image to a square of the resolution, whatever its aspect ratio.

    mmdet's boxes, where there are some, go with it.

    Args:
        resolution: Side in pixels where no draw says one.
        interpolation: 'nearest', 'bilinear', 'bicubic', 'area' or 'lanczos'.
        backend: 'cv2' or 'pillow'.
    """

    def __init__(
        self,
        resolution: int | None = None,
        interpolation: str = 'bilinear',
        backend: str = 'cv2',
    ) -> None:
        _check(self, resolution)
        self.resolution = resolution
        self.noted = noted_resolution()
        self.interpolation = interpolation
        self.backend = backend

    def transform(self, results: dict) -> dict:
        """Resize ``img`` and boxes; sets ``img_shape`` and ``scale_factor`` (width, height)."""
        resolution = _resolution_of(self, results)
        results['img'], width_scale, height_scale = mmcv.imresize(
            results['img'],
            (resolution, resolution),
            return_scale=True,
            interpolation=self.interpolation,
            backend=self.backend,
        )
        results['img_shape'] = (resolution, resolution)
        results['scale_factor'] = (width_scale, height_scale)
        if 'gt_bboxes' in results:
            results['gt_bboxes'].rescale_(results['scale_factor'])
        return results


@TRANSFORMS.register_module()
class RandomResizedCropToResolution(RandomResizedCrop):
    """mmpretrain's ``RandomResizedCrop``, resized to the resolution.

    The crop itself does not depend on the resolution: only its size after resizing does.

    Args:
        resolution: Side in pixels where no draw says one.
        **kwargs: Arguments of ``RandomResizedCrop`` other than ``scale``.
    """

    def __init__(self, resolution: int | None = None, **kwargs: Any) -> None:
        _check(self, resolution)
        super().__init__(scale=resolution or 1, **kwargs)
        self.resolution = resolution
        self.noted = noted_resolution()

    def transform(self, results: dict) -> dict:
        """Crop and resize ``img``; sets ``img_shape``."""
        resolution = _resolution_of(self, results)
        self.scale = (resolution, resolution)
        return super().transform(results)


def _jpeg_header(content: bytes) -> tuple[tuple[int, int], bool] | None:
    """Height and width that OpenCV decodes a JPEG to, and whether it has EXIF; None if it is none.

    Of rare EXIF the two are the other way round: libraries read a damaged one differently.
    """
    from PIL import ExifTags, Image

    try:
        with Image.open(io.BytesIO(content), formats=('JPEG',)) as image:
            width, height = image.size
            # Not of XMP, as Image.getexif: OpenCV does not read that.
            exif = Image.Exif()
            exif.load(image.info.get('exif'))
            on_its_side = exif.get(ExifTags.Base.Orientation) in _ON_ITS_SIDE
    except (*FOREIGN_ERRORS, Image.DecompressionBombError):
        return None
    size = (width, height) if on_its_side else (height, width)
    return size, 'exif' in image.info


def _decoded(content: bytes, path: str, share: int) -> np.ndarray:
    """An image, shape (height, width, 3), blue first; of a JPEG 1 / share of the sides."""
    image = cv2.imdecode(np.frombuffer(content, np.uint8), _REDUCED[share])
    if image is None:
        raise ValueError(f'failed to load image: {path}')
    return image


@TRANSFORMS.register_module()
class LoadRandomResizedCropToResolution(RandomResizedCropToResolution):
    """Load an image, ``RandomResizedCropToResolution`` it, and decode no more than that needs.

    In the place of ``LoadImageFromFile`` and ``RandomResizedCropToResolution``, with the same
    random numbers: a JPEG's header says its size, so that the crop is drawn first. The image is
    then decoded at the smallest of 1/8, 1/4, 1/2 and the whole of its sides at which the crop is
    at least as large as the resolution. Crops of less than twice the resolution are those of the
    two transforms bit by bit; pixels of larger ones differ a little, as libjpeg averages over
    the pixels that resizing would have skipped. Other images than JPEGs are decoded whole.

    Args:
        resolution: Side in pixels where no draw says one.
        backend_args: Where MMEngine reads files, as of ``LoadImageFromFile``.
        **kwargs: Arguments of ``RandomResizedCrop`` other than ``scale``.
    """

    def __init__(
        self,
        resolution: int | None = None,
        backend_args: dict | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(resolution, **kwargs)
        self.backend_args = backend_args

    def transform(self, results: dict) -> dict:
        """Make ``img``, ``img_shape`` and ``ori_shape`` of the file ``img_path``.

        Raises:
            ValueError: It is no image, or a damaged one.
        """
        path = results['img_path']
        content = fileio.get(path, backend_args=self.backend_args)
        image, header = None, _jpeg_header(content)
        if header is None:
            image = _decoded(content, path, 1)
            header = image.shape[:2], False
        size, has_exif = header
        # What looks at the image before it is decoded looks at its size alone.
        results['img'] = np.empty(size, np.uint8)
        resolution = _resolution_of(self, results)
        # Copying it takes a twentieth of a small image's time.
        random_state = np.random.get_state() if has_exif else None
        top, left, height, width = self.rand_crop_params(results.pop('img'))
        if image is None:
            sides = min(height, width)
            share = next((s for s in _REDUCED if sides // s >= resolution), 1)
            image = _decoded(content, path, share)
            expected = tuple(-(-side // share) for side in size)
            if has_exif and image.shape[:2] != expected:
                # OpenCV has not turned it as its header was understood: the crop is drawn again.
                image = _decoded(content, path, 1)
                size = image.shape[:2]
                np.random.set_state(random_state)
                top, left, height, width = self.rand_crop_params(image)
        # The nearest edges in what was decoded: its own, if that is the whole.
        (rows, columns), (whole_rows, whole_columns) = image.shape[:2], size
        top, bottom = (
            (2 * y * rows + whole_rows) // (2 * whole_rows) for y in (top, top + height)
        )
        left, right = (
            (2 * x * columns + whole_columns) // (2 * whole_columns) for x in (left, left + width)
        )
        results['img'] = mmcv.imresize(
            image[top:bottom, left:right],
            (resolution, resolution),
            interpolation=self.interpolation,
            backend=self.backend,
        )
        results['img_shape'] = results['img'].shape
        results['ori_shape'] = size
        return results


@TRANSFORMS.register_module()
class CenterCropToResolution(_ToResolution):
    """Resize the short edge to floor(resolution / crop_ratio), then crop the centre square.

    This is the usual evaluation on ImageNet: 256, then 224 pixels.

    Args:
        resolution: Side in pixels where no draw says one.
        crop_ratio: Side of the crop relative to the short edge, in (0, 1].
        interpolation: 'nearest', 'bilinear', 'bicubic', 'area' or 'lanczos'.
        backend: 'cv2' or 'pillow'.

    Raises:
        ValueError: If ``crop_ratio`` is out of its range.
    """

    def __init__(
        self,
        resolution: int | None = None,
        crop_ratio: float = 224 / 256,
        interpolation: str = 'bilinear',
        backend: str = 'cv2',
    ) -> None:
        _check(self, resolution)
        if not 0 < crop_ratio <= 1:
            raise UsageError(f'CenterCropToResolution: crop_ratio={crop_ratio} must be in (0, 1]')
        self.resolution = resolution
        self.noted = noted_resolution()
        self.crop_ratio = crop_ratio
        self.interpolation = interpolation
        self.backend = backend

    def transform(self, results: dict) -> dict:
        """Resize and crop ``img``; sets ``img_shape`` and ``scale_factor`` (width, height)."""
        resolution = _resolution_of(self, results)
        resize = ResizeEdge(
            math.floor(resolution / self.crop_ratio),
            backend=self.backend,
            interpolation=self.interpolation,
        )
        return CenterCrop(resolution)(resize(results))


@TRANSFORMS.register_module()
class GrayImage(BaseTransform):
    """Makes one channel of ``img`` (H, W, 3), blue first; other images are left as they are.

    So a network for gray images can be given colour ones, as mmpretrain's inferencer reads them.
    """

    def transform(self, results: dict) -> dict:
        """Converts ``img`` to (H, W)."""
        if results['img'].ndim == 3 and results['img'].shape[2] == 3:
            results['img'] = mmcv.bgr2gray(results['img'])
        return results
