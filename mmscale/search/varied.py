"""What a space chooses of its networks beside depths and kernels."""

from __future__ import annotations

import math
from collections.abc import Callable

from mmscale.arch import Arch, Block, SearchSpace
from mmscale.arch.blocks import follows_output
from mmscale.arch.choices import AXES

_ENDS = {'stem': 'stem', 'head_channels': 'head', 'head_hidden_channels': 'hidden head'}


def varied(space: SearchSpace) -> tuple[str, ...]:
    """Names of what may differ between base models beside resolutions, depths and kernels.

    Those of blocks are of :data:`mmscale.arch.choices.AXES`; the others are ``stem``, ``head``,
    ``hidden head`` and ``channels`` of network stages.
    """
    found = [name for key, name in _ENDS.items() if len(space.ends.choices[key]) > 1]
    if any(len(stage.channels) > 1 for stage in space.stages):
        found.append('channels')
    for name in AXES:
        if name not in ('block', 'kernel'):
            found += [name] * any(len(stage.values(name)) > 1 for stage in space.stages)
    return tuple(dict.fromkeys(found))


def expansion(block: Block) -> float:
    """Hidden width of a block over the width that it follows."""
    outer = block.out_channels if follows_output(block) else block.in_channels
    return block.hidden_channels / outer


def group_width(block: Block) -> int:
    """Channels of a group of a block's k x k convolution."""
    return block.grouped_widths[1] // block.groups


def _excitation(block: Block) -> str:
    if block.se is None:
        return 'no'
    return f'{block.se.channels / block.grouped_widths[1]:.2g}'


# Titles and words of what blocks are chosen by. Ratios are rounded as their widths are.
BLOCK_WORDS: dict[str, tuple[str, Callable[[Block], str]]] = {
    'kernel': ('kernels', lambda block: f'{block.kernel}'),
    'kind': ('kinds', lambda block: block.kind),
    'expand': ('expansions', lambda block: f'{expansion(block):.2g}'),
    'group_width': ('group widths', lambda block: f'{group_width(block)}'),
    'se': ('SE', _excitation),
    'act': ('activations', lambda block: block.act),
}


def by_size(word: str) -> tuple[float, str]:
    """Sorts numbers by their size, and words after them."""
    is_number = word.replace('.', '', 1).isdigit()
    return float(word) if is_number else math.inf, word


def spoken(arch: Arch, names: tuple[str, ...]) -> list[str]:
    """Lines of what a network has of these, and its kernels; network stages apart.

    Args:
        arch: The network.
        names: As of :func:`varied`.
    """
    lines = []
    for name, (title, word) in BLOCK_WORDS.items():
        if name == 'kernel' or name in names:
            stages = (' '.join(map(word, stage)) for stage in arch.stages)
            lines.append(f'{title} per network stage {" | ".join(stages)}')
    if 'channels' in names:
        lines.append(f'channels per network stage {" | ".join(map(str, arch.widths))}')
    widths = {
        'stem': arch.stem.out_channels,
        'head': arch.head.channels,
        'hidden head': arch.head.hidden_channels,
    }
    ends = [f'{name} {width}' for name, width in widths.items() if name in names]
    return lines + ([f'channels of {", ".join(ends)}'] if ends else [])
