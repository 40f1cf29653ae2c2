"""Histograms of what was drawn or evaluated, against what was expected."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from matplotlib.figure import Figure

from mmscale.errors import UsageError
from mmscale.visualization.style import BLUE, VERMILION, headline, new_figure, tidy

_COLUMNS = 3
_MOST_LABELS = 12
_MOST_BARS = 256


@dataclass(frozen=True)
class Histogram:
    """Counts by value.

    Attributes:
        title: What was counted.
        xlabel: What the values are, with their unit.
        ylabel: What is counted.
        counts: Count by value, in the order of the axis.
        expected: Expected count by value, empty if nothing is known of it.
    """

    title: str
    xlabel: str
    ylabel: str
    counts: Mapping[str, float]
    expected: Mapping[str, float] = field(default_factory=dict)


def _merged(histogram: Histogram) -> Histogram:
    """A histogram of not too many values: neighbours are one, named after the first of them."""
    values = list(dict.fromkeys([*histogram.expected, *histogram.counts]))
    if len(values) <= _MOST_BARS:
        return histogram
    size = math.ceil(len(values) / _MOST_BARS)
    merged: dict[str, dict[str, float]] = {'counts': {}, 'expected': {}}
    for key, counts in merged.items():
        known = getattr(histogram, key)
        for start in range(0, len(values) if known else 0, size):
            part = values[start : start + size]
            counts[part[0]] = sum(known.get(value, 0) for value in part)
    return replace(histogram, xlabel=f'{histogram.xlabel}, from', **merged)


def plot_histograms(histograms: Sequence[Histogram], title: str, legend: str = 'drawn') -> Figure:
    """Draws a panel per histogram: bars for the counts, marks for the expected ones.

    Args:
        histograms: The panels.
        title: Title of the picture.
        legend: What the bars are called in the legend.

    Raises:
        ValueError: There is no histogram.
    """
    if not histograms:
        raise UsageError('there is no histogram to draw')
    columns = min(_COLUMNS, len(histograms))
    rows = math.ceil(len(histograms) / columns)
    figure = new_figure(3.9 * columns, 2.6 * rows + 0.6)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    bars = marks = None
    for axes, histogram in zip(panels, histograms, strict=False):
        histogram = _merged(histogram)
        values = list(dict.fromkeys([*histogram.expected, *histogram.counts]))
        places = range(len(values))
        bars = axes.bar(places, [histogram.counts.get(v, 0) for v in values], color=BLUE)
        if histogram.expected:
            marks = axes.plot(
                places,
                [histogram.expected.get(v, 0) for v in values],
                linestyle='none',
                marker='_',
                markersize=max(5, 110 / len(values)) if len(values) > 5 else 22,
                markeredgewidth=2.2,
                color=VERMILION,
            )[0]
        step = math.ceil(len(values) / _MOST_LABELS)
        axes.set_xticks(places[::step], values[::step])
        axes.tick_params(labelsize=8)
        tidy(axes, histogram.xlabel, histogram.ylabel, histogram.title)
        axes.grid(axis='x', visible=False)
    for axes in panels[len(histograms) :]:
        axes.set_axis_off()
    if marks is not None:
        figure.legend(
            handles=[bars, marks],
            labels=[legend, 'expected'],
            loc='outside lower center',
            ncols=2,
            frameon=False,
            fontsize=9,
        )
    headline(figure, title)
    return figure
