"""From a base Arch and a Scaling to the scaled Arch: the only place where shapes are derived."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from mmscale.arch.arch import Arch, Block
from mmscale.arch.checks import check_keys, choice, integer, number
from mmscale.errors import UsageError


@dataclass(frozen=True)
class Scaling:
    """Multipliers of depth, width and resolution, relative to the base model.

    Attributes:
        depth: Multiplier of the blocks of every network stage.
        width: Multiplier of the channels.
        resolution: Multiplier of the input's side.
        group_width: Multiplier of the channels of a group; None is that of the width.
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


@dataclass(frozen=True)
class Rounding:
    """How scaled numbers become integers, apart from the rule that scales them.

    Attributes:
        mode: ``ceil`` (ScaleNet) or ``nearest`` (pycls; of two equally near the even multiple).
        channel_divisor: Channels become multiples of it.
        resolution_divisor: The resolution becomes a multiple of it.
        strict: Whether widths stay multiples of `channel_divisor` also where the pycls rule makes
            them divisible by their group widths; pycls itself lets them become any number.
    """

    mode: str = 'ceil'
    channel_divisor: int = 1
    resolution_divisor: int = 1
    strict: bool = False

    def __post_init__(self) -> None:
        choice('rounding: mode', self.mode, ('ceil', 'nearest'))
        for key in ('channel_divisor', 'resolution_divisor'):
            integer(f'rounding: {key}', getattr(self, key))

    def _round(self, value: float, divisor: int) -> int:
        quotient = value / divisor
        # Multipliers are decimals: 1.1 * 100 must not become 111 by a binary rounding error.
        steps = math.ceil(round(quotient, 6)) if self.mode == 'ceil' else round(quotient)
        return max(1, steps) * divisor

    def depth(self, blocks: int, multiplier: float) -> int:
        """Number of blocks of a network stage of `blocks` base blocks."""
        return self._round(blocks * multiplier, 1)

    def width(self, channels: int, multiplier: float) -> int:
        """Scaled number of channels."""
        return self._round(channels * multiplier, self.channel_divisor)

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
    """Looks a width rule of ScaleNet up by name.

    Raises:
        ValueError: There is no rule of that name.
    """
    return WIDTH_RULES[choice('rule', name, WIDTH_RULES)]


def _expanded(inner: int, block: Block, in_channels: int) -> int:
    """Scales an inner width of `block` as its input width changes to `in_channels`."""
    return math.ceil(in_channels * Fraction(inner, block.in_channels))


def _nearest(numerator: int, denominator: int, divisor: int = 1) -> int:
    """The multiple of `divisor` nearest to a fraction, at least one."""
    return max(1, round(numerator / (denominator * divisor))) * divisor


@lru_cache(maxsize=2**12)
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


# The networks of a space are made of few different blocks.
@lru_cache(maxsize=2**14)
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
        raise UsageError(
            f'scaling: groups={block.groups} of a {block.kind} block: only dense and depthwise '
            f"blocks can be scaled by this rule; rule='pycls' scales group convolutions"
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


@dataclass(frozen=True)
class _Kinship:
    """Which of pycls' two families of networks a base model belongs to, and its ratios.

    Attributes:
        anynet: AnyNet (ResNe(X)t, RegNet) or, if not, EffNet (stages of depthwise blocks).
        grouped: Whether there is any group convolution.
        residual: Whether there is any residual connection.
        squeeze: Squeeze width over the block's input width, where all blocks share one ratio.
    """

    anynet: bool
    grouped: bool
    residual: bool
    squeeze: Fraction | None

    def squeezed(self, channels: int, ratio: Fraction) -> int:
        """Squeeze width of `channels`, rounded as the family does."""
        if self.anynet:
            return _nearest(channels * ratio.numerator, ratio.denominator)
        return max(1, channels * ratio.numerator // ratio.denominator)


def _one_ratio(base: Arch, side: str) -> bool:
    """Whether in every network stage the hidden width is one multiple of `side`'s width."""
    return all(
        len({Fraction(block.hidden_channels, getattr(block, side)) for block in stage}) == 1
        for stage in base.stages
    )


@lru_cache(maxsize=256)
def _kinship(base: Arch) -> _Kinship:
    blocks = base.blocks
    anynet = any(
        block.kind in ('bottleneck', 'basic')
        or (block.kind in ('mbconv', 'dsconv') and not block.depthwise)
        for block in blocks
    )
    if not anynet:
        # A RegNetZ with groups of one channel is told by hidden widths that follow the output.
        anynet = not _one_ratio(base, 'in_channels') and _one_ratio(base, 'out_channels')
    grouped = any(block.groups > 1 for block in blocks)
    residual = any(block.residual != 'none' for block in blocks)
    kinship = _Kinship(anynet, grouped, residual, None)
    squeezes = [(block.in_channels, block.se.channels) for block in blocks if block.se]
    if squeezes:
        channels, squeeze = max(squeezes)
        # Few blocks fit many ratios: 1/16 and 3/20, which people write, come before 2/13.
        for denominator in sorted(range(1, 65), key=lambda d: (64 % d > 0, 240 % d > 0, d)):
            numerator = round(Fraction(squeeze * denominator, channels))
            ratio = Fraction(numerator, denominator)
            if numerator and all(kinship.squeezed(c, ratio) == s for c, s in squeezes):
                return replace(kinship, squeeze=ratio)
    return kinship


def group_widths(arch: Arch) -> tuple[int, ...] | None:
    """Channels per group of each network stage's k x k convolutions (of its last block).

    A dense convolution is one group. None for networks of depthwise blocks (EfficientNet,
    MobileNet, ScaleNet), whose groups are of one channel and stay so.
    """
    if not _kinship(arch).anynet:
        return None
    return tuple(stage[-1].grouped_widths[0] // stage[-1].groups for stage in arch.stages)


def compatible_widths(
    width: int, ratio: Fraction, group_width: int, rounding: Rounding
) -> tuple[int, int, int]:
    """Makes a bottleneck divisible by its groups (``adjust_block_compatibility`` of pycls).

    Args:
        width: Output width of the block.
        ratio: Hidden over output width.
        group_width: Wanted channels per group.
        rounding: Says whether the output stays a multiple of its divisor.

    Returns:
        Output width, hidden width and channels per group. The hidden width is a multiple of the
        group width; where one width is a whole multiple of the other, it stays so.
    """
    over, under = ratio.numerator, ratio.denominator
    hidden = max(1, width * over // under)
    group_width = min(group_width, hidden)
    if over > 1 and under > 1:
        # Uneven widths (pruned networks, which pycls does not have): the output may stay.
        return width, _nearest(hidden, 1, group_width), group_width
    step = math.lcm(group_width, over)
    if rounding.strict:
        step = math.lcm(step, Fraction(rounding.channel_divisor * over, under).numerator)
    hidden = _nearest(hidden, 1, step)
    return hidden * under // over, hidden, group_width


def scaled_group_width(channels: int, multiplier: float) -> int:
    """Channels of a group as pycls rounds them: 1, 2, 4 or a multiple of 8."""
    width = max(1, round(channels * multiplier))
    if width <= 5:
        return width if width <= 2 else 4
    return round(width / 8) * 8


def _pycls_block(
    block: Block,
    extra: bool,
    in_channels: int,
    scaling: Scaling,
    rounding: Rounding,
    kin: _Kinship,
) -> Block:
    """Scales a block; an `extra` one repeats it behind its network stage."""
    out_channels = rounding.width(block.out_channels, scaling.width)
    hidden, groups = in_channels, math.gcd(block.groups, in_channels)
    if block.kind == 'basic':
        hidden = max(1, out_channels * block.hidden_channels // block.out_channels)
        groups = math.gcd(groups, hidden)
    elif kin.anynet and block.kind in ('mbconv', 'bottleneck'):
        ratio = Fraction(block.hidden_channels, block.out_channels)
        group_width = block.hidden_channels // block.groups
        # Without any group convolution there are no groups to keep: dense stays dense.
        own = kin.grouped and scaling.group_width is not None
        group_width = scaled_group_width(
            group_width, scaling.group_width if own else scaling.width
        )
        out_channels, hidden, group_width = compatible_widths(
            out_channels, ratio, group_width, rounding
        )
        groups = hidden // group_width
    elif block.kind != 'dsconv':
        hidden, rest = divmod(in_channels * block.hidden_channels, block.in_channels)
        if rest:
            exact = (in_channels * block.hidden_channels, block.in_channels)
            hidden = _nearest(*exact, rounding.channel_divisor)
        groups = math.gcd(groups, hidden)
    if block.depthwise and not (kin.anynet and block.kind in ('mbconv', 'bottleneck')):
        groups = hidden
    se = block.se
    if se is not None:
        if kin.squeeze:
            channels = kin.squeezed(in_channels, kin.squeeze)
        else:
            channels = _nearest(se.channels * hidden, block.hidden_channels)
        se = replace(se, channels=channels)
    grouped = block.grouped_channels
    if grouped:
        grouped = _nearest(grouped * hidden, block.hidden_channels, groups)
    stride = 1 if extra else block.stride
    # No residual where there could be one is a choice of the base model.
    could = block.stride == 1 and block.in_channels == block.out_channels
    residual = 'none'
    if kin.residual and (extra or not could or block.residual != 'none'):
        if stride == 1 and in_channels == out_channels:
            residual = 'identity'
        elif block.residual == 'projection' or block.kind in ('bottleneck', 'basic'):
            residual = 'projection'
    return replace(
        block,
        stride=stride,
        in_channels=in_channels,
        hidden_channels=hidden,
        out_channels=out_channels,
        groups=groups,
        se=se,
        residual=residual,
        grouped_channels=grouped,
    )


def _pycls_scaling(base: Arch, scaling: Scaling, rounding: Rounding) -> Arch:
    kin = _kinship(base)
    stem, head = base.stem, base.head
    if not kin.anynet:
        stem = replace(stem, out_channels=rounding.width(stem.out_channels, scaling.width))
        for key in ('channels', 'hidden_channels'):
            if getattr(head, key):
                head = replace(head, **{key: rounding.width(getattr(head, key), scaling.width)})
    channels = stem.out_channels
    stages = []
    for stage in base.stages:
        count = rounding.depth(len(stage), scaling.depth)
        scaled: list[Block] = []
        before = None
        for index in range(count):
            extra = index >= len(stage)
            key = (stage[-1] if extra else stage[index], extra, channels)
            # Equal blocks are one object: most blocks of a deep network stage are.
            scaled.append(
                scaled[-1] if key == before else _pycls_block(*key, scaling, rounding, kin)
            )
            before, channels = key, scaled[-1].out_channels
        stages.append(tuple(scaled))
    resolution = rounding.resolution(base.resolution, scaling.resolution)
    return Arch(resolution, stem, tuple(stages), head, base.schema)


PYCLS_ROUNDING = Rounding('nearest', channel_divisor=8, resolution_divisor=4)


def apply_scaling(
    base: Arch,
    scaling: Scaling,
    rule: str = 'search',
    rounding: Rounding | None = None,
) -> Arch:
    """Scales a base Arch.

    ``search`` and ``retraining`` scale as ScaleNet does (arXiv 2207.07267 and its released
    code). Every network stage of n blocks gets ceil(n * depth) blocks; the extra ones repeat the
    kernel of the stage's last block. The stem and all stages are widened, the head's convolution
    is not. A scaling of (1, 1, 1) only re-derives the inner widths, so that
    ``apply_scaling(searched, Scaling(), 'retraining')`` turns a searched base model into the one
    that is retrained.

    ``pycls`` scales as the code of "Fast and Accurate Model Scaling" does (arXiv 2103.06877),
    shape by shape: depths to the nearest integer, widths to the nearest multiple of 8, the
    resolution to the nearest of 4. Which of its two families a network belongs to is read off
    its blocks:

    * EffNet, where all blocks are depthwise mbconvs or dsconvs (or fused mbconvs): stem and head
      scale as the stages; hidden widths keep their ratio to the block's input.
    * AnyNet, any other network (RegNet, ResNet, ResNeXt): stem and head stay. Hidden widths keep
      their ratio to the block's output; group widths are scaled and rounded to 1, 2, 4 or a
      multiple of 8, then the block's widths are made divisible by them, so that they need not be
      multiples of 8. A network without group convolutions stays dense, where the original
      would keep its widths or split its convolutions if group widths are fixed.

    The squeeze width keeps its ratio to the block's input where all blocks share one, and else
    each block's to its hidden width.

    Args:
        base: The base model.
        scaling: The multipliers.
        rule: ``search``, ``retraining`` or ``pycls``.
        rounding: How scaled numbers become integers; by default as the rule's source does: up to
            the next integer for ScaleNet's, :data:`PYCLS_ROUNDING` for ``pycls``.

    Raises:
        ValueError: The rule is unknown, or one of ScaleNet's cannot scale a block's groups or is
            given a multiplier for them.
    """
    if rule == 'pycls':
        return _pycls_scaling(base, scaling, rounding or PYCLS_ROUNDING)
    choice('rule', rule, (*WIDTH_RULES, 'pycls'))
    if scaling.group_width is not None:
        raise UsageError(f"scaling: group_width={scaling.group_width} is for rule='pycls' alone")
    widths = width_rule(rule)
    rounding = rounding or Rounding()
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
