"""Reading data of any dataset: what cannot be read is named, in whichever process it is read."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Any

from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmscale.errors import FOREIGN_ERRORS, MMScaleError, UsageError, one_line


def _frames_of(error: Exception) -> Iterator[FrameType]:
    """The calls that an error went through, from where it was raised outwards.

    Wrappers load other images than the one they are asked for, and build datasets inside them:
    only those calls know the file.
    """
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        yield frame


def _image_of(error: Exception) -> dict[str, Any]:
    """What a pipeline knew of the image that it failed on; nothing if there is no such file."""
    for frame in _frames_of(error):
        for value in frame.f_locals.values():
            if isinstance(value, dict) and isinstance(value.get('img_path'), (str, os.PathLike)):
                return value
    return {}


def _source_of(error: Exception) -> tuple[str, str]:
    """The dataset that could not read its annotations, and their file or folder; or nothing."""
    for frame in _frames_of(error):
        if frame.f_code.co_name == 'full_init':
            dataset = frame.f_locals.get('self')
            source = getattr(dataset, 'ann_file', '') or getattr(dataset, 'data_root', '')
            return type(dataset).__name__, str(source or '')
    return '', ''


def load_item(dataset: Any, index: int) -> Any:
    """Loads an item of a dataset.

    Raises:
        UsageError: It cannot be loaded, for whatever reason; the file is named.
    """
    try:
        return dataset[index]
    except (MMScaleError, MemoryError):
        raise
    except Exception as error:
        item = f'item {index} of {type(dataset).__name__}'
        image = _image_of(error)
        path = image.get('img_path')
        if path is not None and 'img' not in image:
            size = f'{os.path.getsize(path):,} bytes' if os.path.isfile(path) else 'no file'
            most = os.environ.get('OPENCV_IO_MAX_IMAGE_PIXELS')
            limit = f' of at most {most} pixels (OPENCV_IO_MAX_IMAGE_PIXELS)' if most else ''
            item = f'{path} ({size}), {item}, must be a whole image{limit}'
        elif path is not None:
            item = f'{path}, {item}'
        raise UsageError(f'{item}: {one_line(error):.300}') from error


def build_dataloader(*settings: Any, **named: Any) -> DataLoader:
    """Builds a data loader as MMEngine's Runner does.

    Raises:
        UsageError: A dataset cannot be made of its annotations; their file is named.
    """
    try:
        return Runner.build_dataloader(*settings, **named)
    except (MMScaleError, OSError):
        raise
    except FOREIGN_ERRORS as error:
        name, source = _source_of(error)
        if not source:
            raise
        raise UsageError(f'{source}: {name} cannot read it: {one_line(error):.300}') from error
