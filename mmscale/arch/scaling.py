"""From a base Arch and a Scaling to the scaled Arch, by a width rule of ScaleNet or pycls."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from mmscale.arch.arch import Arch, Block
from mmscale.arch.blocks import conv_groups, expanded, repeated
from mmscale.arch.checks import choice
from mmscale.arch.pycls import pycls_scaling
from mmscale.arch.rounding import PYCLS_ROUNDING, Rounding, Scaling
from mmscale.errors import UsageError


@dataclass(frozen=True)
class WidthRule:
    """Where the inner widths of a scaled block come from.

    Attributes:
        hidden: ``base`` scales the base block's hidden width; ``scaled`` multiplies the scaled
            input width by the base block's expansion ratio.
        squeeze: SE's squeeze width is a part of the scaled ``hidden`` or ``input`` width, or the
            base block's own (``base``), scaled.
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
    # Every width of the base model times the multiplier: spaces that name their squeeze widths.
    'proportional': WidthRule(hidden='base', squeeze='base'),
}


def width_rule(name: str) -> WidthRule:
    """Looks a width rule up by name.

    Raises:
        ValueError: There is no rule of that name.
    """
    return WIDTH_RULES[choice('rule', name, WIDTH_RULES)]


def scaled_width(channels: int, width: float, rounding: Rounding) -> int:
    """A block's outer width, scaled; at a multiplier of 1 it is what it is, divisible or not."""
    return channels if width == 1 else rounding.width(channels, width)


# The networks of a space are made of few different blocks.
@lru_cache(maxsize=2**14)
def scale_block(
    block: Block, width: float, in_channels: int, rule: WidthRule, rounding: Rounding
) -> Block:
    """Scales a block by one of ScaleNet's width rules.

    Group convolutions keep the channels of a group: the hidden width becomes a multiple of them.

    Args:
        block: A block of the base model.
        width: The width multiplier.
        in_channels: The input width, which the block before has.
        rule: The width rule.
        rounding: How scaled widths become integers.

    Raises:
        UsageError: The block has groups that the rule cannot scale.
    """

    def inner(channels: int) -> int:
        if rule.hidden == 'base':
            scaled = rounding.width(channels, width)
        else:
            scaled = expanded(channels, block.in_channels, in_channels)
        return -(-scaled // kept) * kept

    is_grouped = block.groups != 1 and not block.depthwise
    if is_grouped and (block.grouped_channels or block.kind not in ('mbconv', 'bottleneck')):
        raise UsageError(
            f'scaling: groups={block.groups} of a {block.kind} block: of group convolutions this '
            "rule scales those of mbconv and bottleneck blocks; rule='pycls' scales all"
        )
    kept = block.hidden_channels // block.groups if is_grouped else 1
    out_channels = scaled_width(block.out_channels, width, rounding)
    if block.kind == 'conv':
        hidden = out_channels
    elif block.kind == 'dsconv':
        hidden = in_channels
    else:
        hidden = inner(block.hidden_channels)
    grouped = block.grouped_channels and inner(block.grouped_channels)
    groups = hidden if block.depthwise else hidden // kept if is_grouped else 1
    if block.kind == 'conv':
        groups = conv_groups(block, in_channels, out_channels)
    se = block.se
    if se is not None and rule.squeeze == 'base':
        se = replace(se, channels=scaled_width(se.channels, width, rounding))
    elif se is not None:
        source = (grouped or hidden) if rule.squeeze == 'hidden' else in_channels
        se = replace(se, channels=max(1, source // rule.squeeze_divisor))
    return replace(
        block,
        in_channels=in_channels,
        hidden_channels=hidden,
        out_channels=out_channels,
        groups=groups,
        se=se,
        grouped_channels=grouped,
    )


@lru_cache(maxsize=2**15)
def _scaled_stage(
    stage: tuple[Block, ...],
    scaling: Scaling,
    channels: int,
    widths: WidthRule,
    rounding: Rounding,
) -> tuple[Block, ...]:
    """The blocks of a network stage under a scaling; the networks of a space share most of them.

    Args:
        stage: The blocks of the base model.
        scaling: The multipliers.
        channels: Input width.
        widths: The width rule.
        rounding: How scaled numbers become integers.
    """
    count = rounding.depth(len(stage), scaling.depth)
    extended = stage[:count] + (repeated(stage[-1]),) * (count - len(stage))
    scaled = []
    for block in extended:
        scaled.append(scale_block(block, scaling.width, channels, widths, rounding))
        channels = scaled[-1].out_channels
    return tuple(scaled)


def apply_scaling(
    base: Arch,
    scaling: Scaling,
    rule: str = 'search',
    rounding: Rounding | None = None,
) -> Arch:
    """Scales a base Arch.

    ``search`` and ``retraining`` scale as ScaleNet does (arXiv 2207.07267 and its released
    code), ``proportional`` as ``search`` but for squeeze widths, which scale as all others. Every
    network stage of n blocks gets ceil(n * depth) blocks; the extra ones repeat the kernel of the
    stage's last block. The stem and all stages are widened, the head's convolution is not. A
    scaling of (1, 1, 1) only re-derives the inner widths, so that
    ``apply_scaling(searched, Scaling(), 'retraining')`` turns a searched base model into the one
    that is retrained.

    ``pycls`` scales as the code of "Fast and Accurate Model Scaling" does (arXiv 2103.06877),
    shape by shape: depths to the nearest integer, widths to the nearest multiple of 8, the
    resolution to the nearest of 4. The blocks say which of its two kinds a network is:

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
        rule: The width rule: ``search``, ``retraining``, ``proportional`` or ``pycls``.
        rounding: How scaled numbers become integers; by default up to the next integer for
            ScaleNet's rules, :data:`PYCLS_ROUNDING` for ``pycls``.

    Raises:
        ValueError: The width rule is unknown, or one of ScaleNet's cannot scale a block's groups
            or is given a multiplier for them.
    """
    if rule == 'pycls':
        return pycls_scaling(base, scaling, rounding or PYCLS_ROUNDING)
    choice('rule', rule, (*WIDTH_RULES, 'pycls'))
    if scaling.group_width is not None:
        raise UsageError(f"scaling: group_width={scaling.group_width} is for rule='pycls' alone")
    widths = width_rule(rule)
    rounding = rounding or Rounding()
    channels = scaled_width(base.stem.out_channels, scaling.width, rounding)
    stem = replace(base.stem, out_channels=channels)
    stages = []
    for stage in base.stages:
        stages.append(_scaled_stage(stage, scaling, channels, widths, rounding))
        channels = stages[-1][-1].out_channels
    return Arch(
        resolution=rounding.resolution(base.resolution, scaling.resolution),
        stem=stem,
        stages=tuple(stages),
        head=base.head,
        schema=base.schema,
    )
