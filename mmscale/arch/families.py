"""Published families of networks, from their parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from mmscale.arch.arch import LARGEST_INTEGER, MOST_BLOCKS, Arch, Block, Head, SqueezeExcite, Stem
from mmscale.arch.checks import choice, integer, number
from mmscale.arch.pycls import compatible_widths
from mmscale.arch.rounding import PYCLS_ROUNDING, make_divisible
from mmscale.errors import UsageError


def _check_positive(owner: str, **values: object) -> None:
    for key, value in values.items():
        number(f'{owner}: {key}', value, above=0, below=1000)


def _check_counts(owner: str, **values: object) -> None:
    for key, value in values.items():
        integer(f'{owner}: {key}', value, 1, MOST_BLOCKS if key == 'depth' else LARGEST_INTEGER)


def _residual_stage(
    depth: int,
    in_channels: int,
    out_channels: int,
    stride: int,
    block: Block,
    se_ratio: float = 0.0,
) -> tuple[Block, ...]:
    """Blocks like `block`, the first with the stride; shortcuts project where shapes change."""
    blocks = []
    for index in range(depth):
        channels = out_channels if index else in_channels
        identity = channels == out_channels and (index > 0 or stride == 1)
        other = 'none' if block.kind == 'mbconv' else 'projection'
        se = None
        if se_ratio:
            # Of the input: round, not floor (pycls' AnyNet).
            squeeze = max(1, round(channels * se_ratio))
            se = SqueezeExcite(squeeze, act=block.act, gate='sigmoid')
        blocks.append(
            replace(
                block,
                in_channels=channels,
                stride=1 if index else stride,
                se=se,
                residual='identity' if identity else other,
            )
        )
    return tuple(blocks)


@dataclass(frozen=True)
class _RegNetKind:
    """What is common to the RegNets of one letter."""

    block: str
    act: str
    bottleneck_ratio: float
    se_ratio: float
    head_channels: int


# X and Y: arXiv 2003.13678 and pycls. Z: arXiv 2103.06877; the ratios are those of ClassyVision.
# The width of its head is not published: 1000 (not scaled) reproduces the complexities that
# arXiv 2106.14881 prints for RegNetZ-1GF, 4GF, 16GF and 32GF.
_REGNET_KINDS = {
    'x': _RegNetKind('bottleneck', 'relu', 1.0, 0.0, 0),
    'y': _RegNetKind('bottleneck', 'relu', 1.0, 0.25, 0),
    'z': _RegNetKind('mbconv', 'silu', 4.0, 0.25, 1000),
}


def regnet(
    kind: str,
    depth: int,
    w0: int,
    wa: float,
    wm: float,
    group_width: int,
    bottleneck_ratio: float | None = None,
    se_ratio: float | None = None,
    head_channels: int | None = None,
    resolution: int = 224,
    num_classes: int = 1000,
    eps: float = 1e-5,
) -> Arch:
    """A RegNet: block widths from the quantised line of "Designing Network Design Spaces".

    Block j is w0 + wa * j wide, rounded to w0 * wm^k for a whole k and to a multiple of 8; equal
    widths are a network stage of stride 2 (arXiv 2003.13678, Section 3.3).

    Args:
        kind: ``x``, ``y`` (with SE) or ``z`` (inverted bottleneck without projections, SE, SiLU
            and a convolution in the head, arXiv 2103.06877).
        depth: Number of blocks.
        w0: Initial width, a multiple of 8.
        wa: Slope, 0 or more.
        wm: Width multiplier from network stage to network stage, above 1.
        group_width: Channels per group; smaller hidden widths are one group.
        bottleneck_ratio: Hidden over output width: 1 for X and Y, 4 for Z.
        se_ratio: Squeeze width over the block's input width, 0 for none.
        head_channels: Width of the head's 1x1 convolution, 0 for none.
        resolution: Side of the input.
        num_classes: Outputs of the classifier.
        eps: Epsilon of the BNs.

    Raises:
        ValueError: A parameter is not allowed.
    """
    family = _REGNET_KINDS[choice('regnet: kind', kind, _REGNET_KINDS)]
    ratio = family.bottleneck_ratio if bottleneck_ratio is None else bottleneck_ratio
    se_ratio = family.se_ratio if se_ratio is None else se_ratio
    head_channels = family.head_channels if head_channels is None else head_channels
    if head_channels:
        _check_counts('regnet', head_channels=head_channels)
    _check_counts('regnet', depth=depth, w0=w0, group_width=group_width)
    _check_positive('regnet', wm=wm, bottleneck_ratio=ratio)
    exact_ratio = Fraction(ratio).limit_denominator(64)
    if not exact_ratio:
        raise UsageError(f'regnet: bottleneck_ratio={ratio} must be 1/64 or more')
    if w0 % 8:
        raise UsageError(f'regnet: w0={w0} must be a multiple of 8')
    if wm <= 1:
        raise UsageError(f'regnet: wm={wm} must be above 1')
    for key, value in (('wa', wa), ('se_ratio', se_ratio)):
        if value != 0:
            _check_positive('regnet', **{key: value})
    exponents = np.round(np.log((np.arange(depth) * wa + w0) / w0) / np.log(wm))
    widths = np.round(w0 * np.power(wm, exponents) / 8).astype(int) * 8
    stem = Stem(32, act=family.act, eps=eps)
    channels = stem.out_channels
    stages = []
    for width, blocks in zip(*np.unique(widths, return_counts=True), strict=True):
        out, hidden, group = compatible_widths(
            int(width), exact_ratio, group_width, PYCLS_ROUNDING
        )
        block = Block(
            family.block, 3, 1, out, hidden, out, hidden // group, act=family.act, eps=eps
        )
        stages.append(_residual_stage(int(blocks), channels, out, 2, block, se_ratio))
        channels = out
    head = Head(head_channels, num_classes=num_classes, act=family.act, eps=eps)
    return Arch(resolution, stem, tuple(stages), head)


# Blocks per network stage (arXiv 1512.03385, Table 1).
_RESNET_DEPTHS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


def resnet(
    depth: int,
    groups: int = 1,
    base_width: int = 64,
    resolution: int = 224,
    num_classes: int = 1000,
    eps: float = 1e-5,
) -> Arch:
    """A ResNet (arXiv 1512.03385) or ResNeXt (arXiv 1611.05431), the stride in the 3 x 3.

    Args:
        depth: 18, 34, 50, 101 or 152; the first two have basic blocks.
        groups: Groups of the 3 x 3 convolutions, 32 in ResNeXt.
        base_width: Channels per group in the first network stage: 64 in ResNet, 4 in 32x4d.
        resolution: Side of the input.
        num_classes: Outputs of the classifier.
        eps: Epsilon of the BNs.

    Raises:
        ValueError: A parameter is not allowed.
    """
    if not isinstance(depth, int) or depth not in _RESNET_DEPTHS:
        known = ', '.join(map(str, _RESNET_DEPTHS))
        raise UsageError(f'resnet: depth={depth!r:.60} is not one of {known}')
    _check_counts('resnet', groups=groups, base_width=base_width)
    basic = depth < 50
    if basic and (groups, base_width) != (1, 64):
        raise UsageError(f'resnet: depth={depth} has basic blocks, without groups')
    stem = Stem(64, kernel=7, act='relu', max_pool=True, eps=eps)
    channels = stem.out_channels
    stages = []
    for index, blocks in enumerate(_RESNET_DEPTHS[depth]):
        width = 64 * 2**index
        out = width if basic else 4 * width
        hidden = width if basic else groups * base_width * 2**index
        kind = 'basic' if basic else 'bottleneck'
        block = Block(kind, 3, 1, out, hidden, out, groups, act='relu', eps=eps)
        stages.append(_residual_stage(blocks, channels, out, 2 if index else 1, block))
        channels = out
    return Arch(resolution, stem, tuple(stages), Head(0, 0, num_classes, act='relu', eps=eps))


@dataclass(frozen=True)
class _InvertedBlock:
    """A block of a MobileNet or EfficientNet before its input width is known."""

    kernel: int
    stride: int
    hidden: int
    out: int
    squeeze: int
    act: str
    gate: str
    squeeze_act: str


def _inverted_stages(
    stem: Stem, stages: Sequence[Sequence[_InvertedBlock]], padding: str, eps: float
) -> tuple[tuple[Block, ...], ...]:
    channels = stem.out_channels
    made = []
    for stage in stages:
        blocks = []
        for part in stage:
            se = None
            if part.squeeze:
                se = SqueezeExcite(part.squeeze, act=part.squeeze_act, gate=part.gate)
            blocks.append(
                Block(
                    kind='dsconv' if part.hidden == channels else 'mbconv',
                    kernel=part.kernel,
                    stride=part.stride,
                    in_channels=channels,
                    hidden_channels=part.hidden,
                    out_channels=part.out,
                    groups=part.hidden,
                    se=se,
                    act=part.act,
                    residual='identity' if part.stride == 1 and channels == part.out else 'none',
                    padding=padding,
                    eps=eps,
                )
            )
            channels = part.out
        made.append(tuple(blocks))
    return tuple(made)


def _expanding_stages(
    channels: int,
    settings: Sequence[tuple[int, int, int, int, int]],
    act: str,
    se_ratio: float = 0.0,
) -> list[list[_InvertedBlock]]:
    """Network stages of (expansion, kernel, stride, width, depth)."""
    stages = []
    for expansion, kernel, stride, out, depth in settings:
        stage = []
        for index in range(depth):
            stage.append(
                _InvertedBlock(
                    kernel=kernel,
                    stride=1 if index else stride,
                    hidden=channels * expansion,
                    out=out,
                    squeeze=int(channels * se_ratio),
                    act=act,
                    gate='sigmoid',
                    squeeze_act=act,
                )
            )
            channels = out
        stages.append(stage)
    return stages


# Expansion, kernel, stride, width, depth of B0's network stages (arXiv 1905.11946, Table 1).
_EFFICIENTNET_B0 = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


def efficientnet(
    width: float = 1.0,
    depth: float = 1.0,
    resolution: int = 224,
    lite: bool = False,
    num_classes: int = 1000,
    padding: str = 'half',
    eps: float = 1e-5,
) -> Arch:
    """An EfficientNet: B0 with scaled widths, depths and resolution (arXiv 1905.11946).

    Widths by :func:`make_divisible`, depths rounded up. Padding and epsilon are pycls'; the
    weights of the paper's authors, and mmpretrain's, want ``same`` and 1e-3.

    Args:
        width: Width coefficient.
        depth: Depth coefficient.
        resolution: Side of the input.
        lite: EfficientNet-Lite: no SE, ReLU6; stem, head and the depths of the first and the
            last network stage are not scaled (code of its authors, tensorflow/tpu).
        num_classes: Outputs of the classifier.
        padding: ``half`` or ``same``, see :class:`Block`.
        eps: Epsilon of the BNs.

    Raises:
        ValueError: A parameter is not allowed.
    """
    _check_positive('efficientnet', width=width, depth=depth)
    act = 'relu6' if lite else 'silu'
    fixed = 1.0 if lite else width
    stem = Stem(make_divisible(32 * fixed), act=act, padding=padding, eps=eps)
    settings = []
    last = len(_EFFICIENTNET_B0) - 1
    for index, (expansion, kernel, stride, channels, blocks) in enumerate(_EFFICIENTNET_B0):
        # As a decimal: 1.1 * 10 is not 11 in binary.
        deeper = math.ceil(Fraction(repr(float(depth))) * blocks)
        blocks = blocks if lite and index in (0, last) else deeper
        settings.append((expansion, kernel, stride, make_divisible(channels * width), blocks))
    stages = _expanding_stages(stem.out_channels, settings, act, 0.0 if lite else 0.25)
    head = Head(make_divisible(1280 * fixed), 0, num_classes, act=act, eps=eps)
    return Arch(resolution, stem, _inverted_stages(stem, stages, padding, eps), head)


# Expansion, kernel, stride, width, depth (arXiv 1801.04381, Table 2).
_MOBILENET_V2 = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 3, 2, 32, 3),
    (6, 3, 2, 64, 4),
    (6, 3, 1, 96, 3),
    (6, 3, 2, 160, 3),
    (6, 3, 1, 320, 1),
)


def mobilenet_v2(
    width: float = 1.0, resolution: int = 224, num_classes: int = 1000, eps: float = 1e-5
) -> Arch:
    """MobileNetV2 (arXiv 1801.04381), whose head is never narrower than 1280.

    Args:
        width: Width multiplier.
        resolution: Side of the input.
        num_classes: Outputs of the classifier.
        eps: Epsilon of the BNs.

    Raises:
        ValueError: A parameter is not allowed.
    """
    _check_positive('mobilenet_v2', width=width)
    stem = Stem(make_divisible(32 * width), act='relu6', eps=eps)
    settings = [(*rest, make_divisible(c * width), n) for *rest, c, n in _MOBILENET_V2]
    stages = _expanding_stages(stem.out_channels, settings, 'relu6')
    head = Head(int(1280 * max(1.0, width)), 0, num_classes, act='relu6', eps=eps)
    return Arch(resolution, stem, _inverted_stages(stem, stages, 'half', eps), head)


# Kernel, hidden width, width, SE, activation, stride (arXiv 1905.02244, Tables 1 and 2).
_MOBILENET_V3 = {
    'large': (
        ((3, 16, 16, False, 'relu', 1),),
        ((3, 64, 24, False, 'relu', 2), (3, 72, 24, False, 'relu', 1)),
        (
            (5, 72, 40, True, 'relu', 2),
            (5, 120, 40, True, 'relu', 1),
            (5, 120, 40, True, 'relu', 1),
        ),
        (
            (3, 240, 80, False, 'hswish', 2),
            (3, 200, 80, False, 'hswish', 1),
            (3, 184, 80, False, 'hswish', 1),
            (3, 184, 80, False, 'hswish', 1),
        ),
        ((3, 480, 112, True, 'hswish', 1), (3, 672, 112, True, 'hswish', 1)),
        (
            (5, 672, 160, True, 'hswish', 2),
            (5, 960, 160, True, 'hswish', 1),
            (5, 960, 160, True, 'hswish', 1),
        ),
    ),
    'small': (
        ((3, 16, 16, True, 'relu', 2),),
        ((3, 72, 24, False, 'relu', 2), (3, 88, 24, False, 'relu', 1)),
        (
            (5, 96, 40, True, 'hswish', 2),
            (5, 240, 40, True, 'hswish', 1),
            (5, 240, 40, True, 'hswish', 1),
        ),
        ((5, 120, 48, True, 'hswish', 1), (5, 144, 48, True, 'hswish', 1)),
        (
            (5, 288, 96, True, 'hswish', 2),
            (5, 576, 96, True, 'hswish', 1),
            (5, 576, 96, True, 'hswish', 1),
        ),
    ),
}


def mobilenet_v3(
    size: str = 'large',
    width: float = 1.0,
    resolution: int = 224,
    num_classes: int = 1000,
    eps: float = 1e-5,
) -> Arch:
    """MobileNetV3 (arXiv 1905.02244): SE of a quarter of the hidden width in some blocks.

    Args:
        size: ``large`` or ``small``.
        width: Width multiplier; the linear layer of the head is widened above 1 alone.
        resolution: Side of the input.
        num_classes: Outputs of the classifier.
        eps: Epsilon of the BNs.

    Raises:
        ValueError: A parameter is not allowed.
    """
    choice('mobilenet_v3: size', size, _MOBILENET_V3)
    _check_positive('mobilenet_v3', width=width)
    stem = Stem(make_divisible(16 * width), act='hswish', eps=eps)
    stages = []
    for settings in _MOBILENET_V3[size]:
        stage = []
        for kernel, hidden, out, squeezed, act, stride in settings:
            hidden = make_divisible(hidden * width)
            stage.append(
                _InvertedBlock(
                    kernel=kernel,
                    stride=stride,
                    hidden=hidden,
                    out=make_divisible(out * width),
                    squeeze=make_divisible(hidden // 4) if squeezed else 0,
                    act=act,
                    gate='hsigmoid',
                    squeeze_act='relu',
                )
            )
        stages.append(stage)
    made = _inverted_stages(stem, stages, 'half', eps)
    head = Head(
        channels=6 * made[-1][-1].out_channels,
        hidden_channels=make_divisible((1280 if size == 'large' else 1024) * max(1.0, width)),
        num_classes=num_classes,
        act='hswish',
        eps=eps,
    )
    return Arch(resolution, stem, made, head)
