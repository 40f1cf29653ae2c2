"""Transforms whose output size is the resolution drawn by the sampler.

Each takes the first resolution that there is of ``results['resolution']``; the draw whose image is
being loaded; its own ``resolution``, which may also be set as an attribute later; and that of the
:class:`~mmscale.models.ArchNet` that this process had built when it built the transform. So the
same pipeline serves supernet training, where every batch has another resolution, and everything
else.
"""

import logging
import math
from typing import Any

import mmcv
from mmcv.transforms import BaseTransform, CenterCrop
from mmengine.logging import print_log
from mmpretrain.datasets.transforms import RandomResizedCrop, ResizeEdge

from mmscale.datasets.draws import drawn_resolution
from mmscale.errors import UsageError
from mmscale.input_size import noted_resolution
from mmscale.registry import TRANSFORMS


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
