"""From a base Arch and a Scaling to the scaled Arch: the only place where shapes are derived."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction

from mmscale.arch.arch import Arch, Block


@dataclass(frozen=True)
class Scaling:
    """Multipliers of depth, width and resolution, relative to the base model.

    Attributes:
        depth: Multiplier of the blocks of every network stage.
        width: Multiplier of the channels.
        resolution: Multiplier of the input's side.
    """

    depth: float = 1.0
    width: float = 1.0
    resolution: float = 1.0

    def __post_init__(self) -> None:
        for key in ('depth', 'width', 'resolution'):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ValueError(f'scaling: {key}={value!r} must be a number')
            if not 0 < value < 1000:
                raise ValueError(f'scaling: {key}={value} must be above 0 and below 1000')
            # 1 and 1.0 are equal but are not written alike in JSON.
            object.__setattr__(self, key, float(value))


@dataclass(frozen=True)
class Rounding:
    """How scaled numbers become integers, apart from the rule that scales them.

    Attributes:
        mode: ``ceil`` (ScaleNet) or ``nearest``.
        width_divisor: Channels become multiples of it.
        resolution_divisor: The resolution becomes a multiple of it.
    """

    mode: str = 'ceil'
    width_divisor: int = 1
    resolution_divisor: int = 1

    def __post_init__(self) -> None:
        if self.mode not in ('ceil', 'nearest'):
            raise ValueError(f'rounding: mode={self.mode!r} is not one of ceil, nearest')
        for key in ('width_divisor', 'resolution_divisor'):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f'rounding: {key}={value!r} must be an integer of 1 or more')

    def _round(self, value: float, divisor: int) -> int:
        # Multipliers are decimals: 1.1 * 100 must not become 111 by a binary rounding error.
        quotient = round(value / divisor, 6)
        steps = math.ceil(quotient) if self.mode == 'ceil' else round(quotient)
        return max(1, steps) * divisor

    def depth(self, blocks: int, multiplier: float) -> int:
        """Number of blocks of a network stage of `blocks` base blocks."""
        return self._round(blocks * multiplier, 1)

    def width(self, channels: int, multiplier: float) -> int:
        """Scaled number of channels."""
        return self._round(channels * multiplier, self.width_divisor)

    def resolution(self, pixels: int, multiplier: float) -> int:
        """Scaled side of the input, in pixels."""
        return self._round(pixels * multiplier, self.resolution_divisor)


@dataclass(frozen=True)
class WidthRule:
    """Where the inner widths of a scaled block come from.

    Attributes:
        hidden: ``base`` scales the base block's hidden width; ``scaled`` multiplies the scaled
            input width by the base block's expansion ratio.
        squeeze: SE's squeeze width is a part of the scaled ``hidden`` or ``input`` width.
        squeeze_divisor: That part, rounded down.
    """

    hidden: str
    squeeze: str
    squeeze_divisor: int = 4


WIDTH_RULES = {
    # ScaleNet's super-supernet and search: hidden = ceil(6 * c_base * w), squeeze = hidden // 4.
    'search': WidthRule(hidden='base', squeeze='hidden'),
    # ScaleNet's retrained networks: hidden = 6 * ceil(c * w), squeeze = block input // 4.
    'retraining': WidthRule(hidden='scaled', squeeze='input'),
}


def width_rule(name: str) -> WidthRule:
    """Looks a width rule up by name.

    Raises:
        ValueError: There is no rule of that name.
    """
    if name not in WIDTH_RULES:
        raise ValueError(f'rule={name!r} is not one of {", ".join(WIDTH_RULES)}')
    return WIDTH_RULES[name]


def _expanded(inner: int, block: Block, in_channels: int) -> int:
    """Scales an inner width of `block` as its input width changes to `in_channels`."""
    return math.ceil(in_channels * Fraction(inner, block.in_channels))


def _repeat(block: Block) -> Block:
    """The block that extends a network stage behind `block`: equal kernel and expansion."""
    if block.residual == 'identity':
        return block
    hidden = _expanded(block.hidden_channels, block, block.out_channels)
    grouped = block.grouped_channels
    return replace(
        block,
        stride=1,
        in_channels=block.out_channels,
        hidden_channels=hidden,
        groups=hidden if block.depthwise else block.groups,
        residual='identity',
        grouped_channels=grouped and _expanded(grouped, block, block.out_channels),
    )


def _scale_block(
    block: Block, width: float, in_channels: int, rule: WidthRule, rounding: Rounding
) -> Block:
    def inner(channels: int) -> int:
        if rule.hidden == 'base':
            return rounding.width(channels, width)
        return _expanded(channels, block, in_channels)

    hidden = in_channels if block.kind == 'dsconv' else inner(block.hidden_channels)
    grouped = block.grouped_channels and inner(block.grouped_channels)
    if not block.depthwise and block.groups != 1:
        raise ValueError(
            f'scaling: groups={block.groups} of a {block.kind} block: only dense and depthwise '
            f'blocks can be scaled by this rule'
        )
    se = block.se
    if se is not None:
        source = (grouped or hidden) if rule.squeeze == 'hidden' else in_channels
        se = replace(se, channels=max(1, source // rule.squeeze_divisor))
    return replace(
        block,
        in_channels=in_channels,
        hidden_channels=hidden,
        out_channels=rounding.width(block.out_channels, width),
        groups=hidden if block.depthwise else 1,
        se=se,
        grouped_channels=grouped,
    )


def apply_scaling(
    base: Arch,
    scaling: Scaling,
    rule: str = 'search',
    rounding: Rounding = Rounding(),
) -> Arch:
    """Scales a base Arch as ScaleNet does (arXiv 2207.07267 and its released code).

    Every network stage of n blocks gets ceil(n * depth) blocks; the extra ones repeat the kernel
    of the stage's last block. The stem and all stages are widened, the head's convolution is not.
    A scaling of (1, 1, 1) only re-derives the inner widths, so that
    ``apply_scaling(searched, Scaling(), 'retraining')`` turns a searched base model into the one
    that is retrained.

    Args:
        base: The base model.
        scaling: The multipliers.
        rule: Name of the rule for hidden and squeeze widths, ``search`` or ``retraining``.
        rounding: How scaled numbers become integers.

    Raises:
        ValueError: The rule is unknown, or a block has groups that this rule cannot scale.
    """
    widths = width_rule(rule)
    channels = rounding.width(base.stem.out_channels, scaling.width)
    stem = replace(base.stem, out_channels=channels)
    stages = []
    for stage in base.stages:
        count = rounding.depth(len(stage), scaling.depth)
        extended = stage[:count] + (_repeat(stage[-1]),) * (count - len(stage))
        scaled = []
        for block in extended:
            scaled.append(_scale_block(block, scaling.width, channels, widths, rounding))
            channels = scaled[-1].out_channels
        stages.append(tuple(scaled))
    return Arch(
        resolution=rounding.resolution(base.resolution, scaling.resolution),
        stem=stem,
        stages=tuple(stages),
        head=base.head,
        schema=base.schema,
    )


def compound_scaling(factor: float) -> Scaling:
    """Uniform compound scaling (dwr): depth, width and resolution take equal shares.

    Flops grow with depth * width^2 * resolution^2, so that factor^(1/3) goes into depth and
    factor^(1/6) into width and into resolution (arXiv 2103.06877, alpha = 1/3).

    Args:
        factor: Wanted multiple of the flops; rounding makes the true one differ.
    """
    return Scaling(factor ** (1 / 3), factor ** (1 / 6), factor ** (1 / 6))
