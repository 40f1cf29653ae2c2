"""Networks drawn network stage by network stage: width as height, depth as length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from mmscale.arch import Arch, Block
from mmscale.errors import UsageError
from mmscale.search.varied import expansion
from mmscale.visualization.style import LIGHT_GREY, PALETTE, headline, literal, new_figure

_GAP = 0.5
_BLOCK = 0.88
# Height of a picture's row, in inches, and of its lettering, relative to the tallest box.
_ROW = 1.6
_LETTERING = 0.30
# Network stages that are lettered, and kernels that are named.
_MOST_LETTERED = 40
_MOST_KERNELS = 12
# Expansions of a network stage that are as near as this differ by their rounding alone.
_ALIKE = 1.25
_SE_HATCH = '...'
_SHORT = {
    'mbconv': 'mb', 'dsconv': 'ds', 'fused_mbconv': 'fu', 'bottleneck': 'bo', 'basic': 'ba',
    'conv': 'co',
}  # fmt: skip


def _kernel_colours(archs: Sequence[Arch]) -> dict[int, str]:
    kernels = sorted({block.kernel for arch in archs for block in arch.blocks})
    # By size, so that kernel 3 looks alike in every picture: 1, 3, 5, 7, ...
    return {kernel: PALETTE[(kernel // 2 - 1) % len(PALETTE)] for kernel in kernels}


def _tallest(archs: Sequence[Arch]) -> int:
    return max(width for arch in archs for width in (*arch.widths, arch.stem.out_channels))


def _length(arch: Arch) -> float:
    """Boxes of all blocks, of stem and head, and the gaps between them."""
    return len(arch.blocks) + 2 + _GAP * (len(arch.stages) + 1)


def _box(axes: Axes, x: float, height: float, colour: str, **style: object) -> None:
    axes.add_patch(
        Rectangle((x, -height / 2), _BLOCK, height, facecolor=colour, edgecolor='white', **style)
    )


def _has_some_se(archs: Sequence[Arch]) -> bool:
    """Whether some blocks have SE and others have none."""
    return len({block.se is None for arch in archs for block in arch.blocks}) > 1


def _differing(stage: Sequence[Block]) -> str:
    """Kinds and expansions of the blocks of a network stage where they differ, a line each."""
    kinds = [_SHORT[block.kind] for block in stage]
    expansions = [expansion(block) for block in stage]
    lines = ['\n' + ' '.join(kinds)] if len(set(kinds)) > 1 else []
    if max(expansions) > _ALIKE * min(expansions):
        lines.append('\n×' + ' '.join(f'{value:.2g}' for value in expansions))
    return ''.join(lines)


def _draw(axes: Axes, arch: Arch, tallest: int, longest: float, name: str) -> None:
    """Draws one network into axes of a common scale."""
    colours = _kernel_colours([arch])
    room = tallest * _LETTERING

    def lettering(x: float, height: float, above: str, below: str) -> None:
        style = dict(ha='center', fontsize=7.5, color='0.25', linespacing=0.95)
        axes.text(x, height / 2 + room * 0.15, above, va='bottom', **style)
        axes.text(x, -height / 2 - room * 0.15, below, va='top', **style)

    size = -(-arch.resolution // arch.stem.stride)
    _box(axes, 0, arch.stem.out_channels, LIGHT_GREY, hatch='////')
    lettering(_BLOCK / 2, arch.stem.out_channels, f'{arch.stem.out_channels}', f'stem\n{size} px')
    x = 1 + _GAP
    step = -(-len(arch.stages) // _MOST_LETTERED)
    marked, lines = _has_some_se([arch]), 0
    for i, (stage, stride) in enumerate(zip(arch.stages, arch.strides, strict=True), start=1):
        width = stage[-1].out_channels
        for slot, block in enumerate(stage):
            hatch = _SE_HATCH if marked and block.se is not None else None
            _box(axes, x + slot, block.out_channels, colours[block.kernel], hatch=hatch)
        centre = x + (len(stage) - 1 + _BLOCK) / 2
        size = -(-arch.resolution // stride)
        if (i - 1) % step == 0:
            below = _differing(stage)
            lines = max(lines, below.count('\n'))
            lettering(centre, width, f'{width} × {len(stage)}', f'stage {i}\n{size} px{below}')
        x += len(stage) + _GAP
    if arch.head.channels:
        # Much wider than the network stages as a rule: the box only stands for it.
        height = min(arch.head.channels, tallest)
        cut = '\n(cut)' if arch.head.channels > tallest else ''
        _box(axes, x, height, LIGHT_GREY, hatch='////')
        lettering(x + _BLOCK / 2, height, f'{arch.head.channels}', f'head{cut}')
    axes.set_xlim(-0.6, longest + 0.1)
    axes.set_ylim(-tallest / 2 - (1.6 + 0.6 * lines) * room, tallest / 2 + 1.0 * room)
    axes.set_axis_off()
    axes.set_title(
        f'{literal(name)}: {arch.resolution} px, {len(arch.blocks)} blocks',
        fontsize=9.5,
        loc='left',
    )


def plot_archs(archs: Mapping[str, Arch], title: str = '') -> Figure:
    """Draws networks below each other on one scale.

    Every box is a block: its height is its output width in channels, its colour its kernel; the
    boxes of a network stage stand close together. Above a network stage stand its channels and
    blocks, below it the side of its feature map, and kinds and expansions of its blocks where they
    differ. Where only some blocks have SE these are dotted. Stem and head are hatched; a head that
    is wider than every network stage is cut to the widest of them.

    Args:
        archs: Networks by name, in the order in which they are drawn.
        title: Title of the picture.

    Raises:
        ValueError: There is no network.
    """
    if not archs:
        raise UsageError('there is no network to draw')
    networks = list(archs.values())
    tallest, longest = _tallest(networks), max(map(_length, networks))
    width = min(max(5.5, 0.36 * longest), 16)
    figure = new_figure(width, _ROW * len(networks) + 0.75)
    for axes, (name, arch) in zip(
        figure.subplots(len(networks), 1, squeeze=False)[:, 0], archs.items(), strict=True
    ):
        _draw(axes, arch, tallest, longest, name)
    handles = [
        Patch(facecolor=colour, label=f'kernel {kernel}')
        for kernel, colour in islice(_kernel_colours(networks).items(), _MOST_KERNELS)
    ]
    if _has_some_se(networks):
        handles.append(Patch(facecolor='white', hatch=_SE_HATCH, edgecolor='grey', label='SE'))
    handles.append(
        Patch(facecolor=LIGHT_GREY, hatch='////', edgecolor='white', label='stem, head')
    )
    figure.legend(
        handles=handles,
        loc='outside lower center',
        ncols=min(len(handles), _MOST_KERNELS // 2 + 1),
        fontsize=8,
        frameon=False,
        title='height: channels, a box per block',
        title_fontsize=8,
    )
    if title:
        headline(figure, title)
    return figure


def plot_arch(arch: Arch, name: str) -> Figure:
    """Draws one network, see :func:`plot_archs`."""
    return plot_archs({name: arch})
