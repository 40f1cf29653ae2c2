"""What a search space offers per network stage and per scaling stage, as its config spells it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmscale.arch.arch import LARGEST_INTEGER, MOST_BLOCKS
from mmscale.arch.checks import check_keys, integer, number
from mmscale.errors import UsageError


def _ascending(owner: str, values: object, kind: type) -> tuple:
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise UsageError(f'{owner}={values!r:.60} must be a non-empty list')
    for index, value in enumerate(values):
        if kind is int:
            integer(f'{owner}[{index}]', value, 1, LARGEST_INTEGER)
        else:
            number(f'{owner}[{index}]', value, above=0, most=LARGEST_INTEGER)
    if list(values) != sorted(set(values)):
        raise UsageError(f'{owner}={list(values)!r:.60} must be ascending and without repeats')
    return tuple(kind(value) for value in values)


@dataclass(frozen=True)
class StageChoices:
    """Choices for one network stage of the base model.

    Attributes:
        channels: Output width.
        stride: Stride of the first block.
        expand: Expansion ratio; 1 builds blocks without the first 1x1 convolution.
        depths: Allowed numbers of blocks, ascending.
        kernels: Allowed kernel sizes, ascending.
    """

    channels: int
    stride: int
    expand: int
    depths: tuple[int, ...]
    kernels: tuple[int, ...]

    @classmethod
    def from_config(cls, owner: str, stage: object) -> StageChoices:
        """Checks the choices that a config spells out as a dict.

        Args:
            owner: What they are, for errors.
            stage: The dict.

        Raises:
            ValueError: A key is unknown or missing, or a value is not allowed; it is named.
        """
        stage = check_keys(owner, stage, ('stride', 'expand'), ('channels', 'depths', 'kernels'))
        kernels = _ascending(f'{owner}.kernels', stage['kernels'], int)
        for kernel in kernels:
            if kernel % 2 == 0:
                raise UsageError(f'{owner}.kernels: {kernel} must be odd')
        depths = _ascending(f'{owner}.depths', stage['depths'], int)
        if depths[-1] > MOST_BLOCKS:
            raise UsageError(f'{owner}.depths: {depths[-1]:.6g} must be {MOST_BLOCKS} or less')
        return cls(
            channels=integer(f'{owner}.channels', stage['channels']),
            stride=integer(f'{owner}.stride', stage.get('stride', 1)),
            expand=integer(f'{owner}.expand', stage.get('expand', 1)),
            depths=depths,
            kernels=kernels,
        )


@dataclass(frozen=True)
class ScalingChoices:
    """Choices for one scaling stage.

    Attributes:
        depth: Depth multipliers.
        width: Width multipliers.
        resolution: Resolutions, in pixels.
    """

    depth: tuple[float, ...]
    width: tuple[float, ...]
    resolution: tuple[int, ...]

    @classmethod
    def from_config(cls, owner: str, stage: object) -> ScalingChoices:
        """Checks the choices that a config spells out as a dict.

        Args:
            owner: What they are, for errors.
            stage: The dict.

        Raises:
            ValueError: A key is unknown or missing, or a value is not allowed; it is named.
        """
        stage = check_keys(owner, stage, (), ('depth', 'width', 'resolution'))
        choices = cls(
            depth=_ascending(f'{owner}.depth', stage['depth'], float),
            width=_ascending(f'{owner}.width', stage['width'], float),
            resolution=_ascending(f'{owner}.resolution', stage['resolution'], int),
        )
        for key in ('depth', 'width'):
            if getattr(choices, key)[0] < 1:
                raise UsageError(
                    f'{owner}.{key}: {getattr(choices, key)[0]} must be 1 or more: '
                    f'the base model is the smallest of the family'
                )
        return choices
