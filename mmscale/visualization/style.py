"""What all pictures share: figures without global state, colours that everybody can tell apart."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from mmscale.shown import visible

# Okabe and Ito's palette, told apart with any colour vision.
BLUE = '#0072B2'
ORANGE = '#E69F00'
GREEN = '#009E73'
VERMILION = '#D55E00'
PURPLE = '#CC79A7'
SKY = '#56B4E9'
GREY = '#8C8C8C'
LIGHT_GREY = '#D0D0D0'
# Of a cost on a logarithmic axis.
_SMALLEST = 1e-12
PALETTE = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY)


def literal(text: str, most: int = 100) -> str:
    r"""A text of somebody else in a picture: no formula, nothing invisible, not too long.

    Example:
        >>> literal('costs $x$')
        'costs \\$x\\$'
    """
    text = visible(text[: most + 1])
    text = text if len(text) <= most else f'{text[: most - 1]}…'
    return text.replace('$', r'\$')


def headline(figure: Figure, title: str) -> None:
    """Writes what a whole picture is above it."""
    figure.suptitle(literal(title), fontsize=11)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, without pyplot and its global state."""
    return Figure(figsize=(width, height), layout='constrained')


def stage_colours(count: int) -> list[tuple[float, float, float, float]]:
    """Colours of an ordered series, dark to light: scaling stages from small to large."""
    colours = colormaps['viridis']
    return [colours(0.9 * i / max(count - 1, 1)) for i in range(count)]


def tidy(axes: Axes, xlabel: str, ylabel: str, title: str = '') -> None:
    """Labels axes and takes away what carries no data."""
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    if title:
        axes.set_title(literal(title), fontsize=10, loc='left')
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)


def cost_axis(axes: Axes, costs: Sequence[float], which: str = 'x') -> None:
    """Makes an axis a logarithmic cost, with a tick per doubling; costs of 0 are not on it."""
    known = [cost for cost in costs if cost >= _SMALLEST]
    if not known:
        return
    low, high = min(known), max(known)
    unit = 10 ** math.floor(math.log10(low))
    doublings = range(-1, math.ceil(math.log2(high / unit)) + 1)
    ticks = [unit * 2.0**k for k in doublings if low / 1.5 <= unit * 2.0**k <= high * 1.5]
    # Beyond ten doublings every other tick, and so on.
    ticks = ticks[:: math.ceil(len(ticks) / 10)]
    axes.set(**{f'{which}scale': 'log'})
    axis = axes.xaxis if which == 'x' else axes.yaxis
    axis.set_minor_locator(NullLocator())
    axis.set_ticks(ticks, [short(tick) for tick in ticks])


def short(value: float) -> str:
    """A cost in three digits: 1.23 M."""
    for unit, size in (('G', 1e9), ('M', 1e6), ('k', 1e3)):
        if value >= size:
            return f'{value / size:.3g} {unit}'
    return f'{value:.3g}'
