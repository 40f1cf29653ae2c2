"""Multipliers of depth, width and resolution, and how scaled numbers become integers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mmscale.arch.checks import check_keys, choice, integer, number
from mmscale.errors import UsageError

ROUNDINGS = ('ceil', 'nearest', 'divisible')


@dataclass(frozen=True)
class Scaling:
    """Multipliers of depth, width and resolution, relative to the base model.

    Attributes:
        depth: Multiplier of the blocks of every network stage.
        width: Multiplier of the channels.
        resolution: Multiplier of the input's side.
        group_width: Multiplier of the channels of a group; None is that of the width.

    Example:
        >>> Scaling(depth=1.2, resolution=1.5).to_json()
        {'depth': 1.2, 'width': 1.0, 'resolution': 1.5}
    """

    depth: float = 1.0
    width: float = 1.0
    resolution: float = 1.0
    group_width: float | None = None

    def __post_init__(self) -> None:
        for key in ('depth', 'width', 'resolution', 'group_width'):
            value = getattr(self, key)
            if value is not None or key != 'group_width':
                number(f'scaling: {key}', value, above=0, below=1000)
                # 1 and 1.0 are equal but are not written alike in JSON.
                object.__setattr__(self, key, float(value))

    @classmethod
    def from_json(cls, owner: str, data: object) -> Scaling:
        """Reads what :meth:`to_json` returns.

        Args:
            owner: What the data is, for the error.
            data: Plain data, of any kind.

        Raises:
            ValueError: A key is unknown, or a value is not allowed.
        """
        multipliers = check_keys(owner, data, cls.__dataclass_fields__)
        try:
            return cls(**multipliers)
        except ValueError as error:
            raise UsageError(f'{owner}: {str(error).removeprefix("scaling: ")}') from None

    def to_json(self) -> dict[str, float]:
        """Returns the multipliers as plain data, without a group width that is the width's."""
        data = {'depth': self.depth, 'width': self.width, 'resolution': self.resolution}
        if self.group_width is not None:
            data['group_width'] = self.group_width
        return data


def make_divisible(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of `divisor`, one up where that takes away more than a tenth.

    MobileNetV2's rule, which MobileNetV3 and EfficientNet share.
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


@dataclass(frozen=True)
class Rounding:
    """How scaled numbers become integers, apart from the rule that scales them.

    Attributes:
        mode: ``ceil`` (ScaleNet), ``nearest`` (pycls; of two equally near the even multiple) or
            ``divisible`` (MobileNetV3 and EfficientNet: widths by :func:`make_divisible`, depths
            and resolutions up).
        channel_divisor: Channels become multiples of it.
        resolution_divisor: The resolution becomes a multiple of it.
        strict: Whether widths stay multiples of `channel_divisor` also where the width rule of
            pycls makes them divisible by their group widths; pycls itself does not keep them so.
    """

    mode: str = 'ceil'
    channel_divisor: int = 1
    resolution_divisor: int = 1
    strict: bool = False

    def __post_init__(self) -> None:
        choice('rounding: mode', self.mode, ROUNDINGS)
        for key in ('channel_divisor', 'resolution_divisor'):
            integer(f'rounding: {key}', getattr(self, key))

    @classmethod
    def from_config(cls, owner: str, given: object) -> Rounding:
        """The rounding that a config spells out as a dict; None is the default.

        Args:
            owner: What it is, for errors.
            given: ``dict(mode, channel_divisor)`` or None.

        Raises:
            ValueError: A key is unknown, or a value is not allowed.
        """
        if given is None:
            return cls()
        given = check_keys(owner, given, ('mode', 'channel_divisor'))
        try:
            return cls(**given)
        except UsageError as error:
            raise UsageError(f'{owner}.{str(error).removeprefix("rounding: ")}') from None

    def _round(self, value: float, divisor: int) -> int:
        quotient = value / divisor
        # Multipliers are decimals: 1.1 * 100 must not become 111 by a binary rounding error.
        up = self.mode != 'nearest'
        steps = math.ceil(round(quotient, 6)) if up else round(quotient)
        return max(1, steps) * divisor

    def depth(self, blocks: int, multiplier: float) -> int:
        """Number of blocks of a network stage of `blocks` base blocks."""
        return self._round(blocks * multiplier, 1)

    def width(self, channels: int, multiplier: float) -> int:
        """Scaled number of channels."""
        if self.mode == 'divisible':
            return make_divisible(round(channels * multiplier, 6), self.channel_divisor)
        return self._round(channels * multiplier, self.channel_divisor)

    def resolution(self, pixels: int, multiplier: float) -> int:
        """Scaled side of the input, in pixels."""
        return self._round(pixels * multiplier, self.resolution_divisor)


PYCLS_ROUNDING = Rounding('nearest', channel_divisor=8, resolution_divisor=4)
