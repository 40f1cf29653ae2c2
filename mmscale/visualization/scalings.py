"""Picture of scaling strategies: what they pay in acts and time for the same flops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from mmscale.visualization.style import (
    GREY,
    VERMILION,
    cost_axis,
    headline,
    literal,
    new_figure,
    short,
    tidy,
)
from mmscale.visualization.style import stage_colours as ordered_colours


@dataclass(frozen=True)
class ScalingPoint:
    """A scaled network.

    Attributes:
        strategy: The rule that made it.
        factor: Multiple of the base model's cost that was asked for.
        flops: Multiply-adds.
        acts: Activations.
        milliseconds: Its time, or None where that is not known.
    """

    strategy: str
    flops: float
    acts: float
    milliseconds: float | None = None
    factor: float = 1.0


def plot_scalings(
    base: ScalingPoint,
    points: Sequence[ScalingPoint],
    title: str,
    setting: str = '',
    asked: Sequence[ScalingPoint] = (),
) -> Figure:
    """Draws acts, and time where it is known, against flops, a line per strategy.

    Which network is best is not marked: they differ in flops.

    Args:
        base: The base model.
        points: Scaled networks.
        title: Above the picture.
        setting: What the times are of.
        asked: The networks that were asked for, which are marked and named.
    """
    timed = all(point.milliseconds is not None for point in (base, *points, *asked))
    figure = new_figure(11 if timed else 6, 4.5)
    panels = [('acts', 'activations')]
    if timed:
        panels.append(('milliseconds', f'predicted milliseconds\n{literal(setting)}'))
    strategies = list(dict.fromkeys(point.strategy for point in points))
    colours = ordered_colours(len(strategies))
    for axes, (key, label) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        for strategy, colour in zip(strategies, colours, strict=True):
            own = sorted(
                (point for point in points if point.strategy == strategy), key=lambda p: p.flops
            )
            axes.plot(
                [point.flops for point in own],
                [getattr(point, key) for point in own],
                marker='o',
                markersize=4,
                color=colour,
                label=literal(strategy),
            )
        if asked:
            axes.plot(
                [point.flops for point in asked],
                [getattr(point, key) for point in asked],
                'D',
                markersize=8,
                markerfacecolor='none',
                markeredgecolor=VERMILION,
                markeredgewidth=2,
                label='asked for',
            )
        for point in asked:
            axes.annotate(
                f'{literal(point.strategy)} {point.factor:.3g}x',
                (point.flops, getattr(point, key)),
                xytext=(8, -10),
                textcoords='offset points',
                fontsize=8,
            )
        axes.plot(base.flops, getattr(base, key), '*', markersize=12, color=GREY, label='base')
        tidy(axes, 'multiply-adds', label)
        cost_axis(axes, [base.flops, *(point.flops for point in (*points, *asked))])
        axes.set_yscale('log')
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        axes.yaxis.set_minor_locator(NullLocator())
    figure.axes[0].legend(fontsize=8)
    headline(figure, title)
    return figure
