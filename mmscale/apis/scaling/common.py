"""What scaling an Arch and scaling a config share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmengine.config import Config

MODES = ('reference', 'matched')
HEAD_WIDTHS = ('kept', 'free')


def backbone_of(config: Config) -> Mapping | None:
    """The backbone of a config's model, or None if it has none."""
    model = config.get('model')
    backbone = model.get('backbone') if isinstance(model, Mapping) else None
    return backbone if isinstance(backbone, Mapping) else None


def sides(resolution: int | Sequence[int]) -> tuple[int, int]:
    """Height and width of an image whose size is said as one side, or as both."""
    if isinstance(resolution, int):
        return (resolution, resolution)
    height, width = resolution
    return (height, width)


def side_or_sides(shape: tuple[int, int]) -> int | tuple[int, int]:
    """The side of a square image, height and width of any other."""
    return shape[0] if shape[0] == shape[1] else shape
