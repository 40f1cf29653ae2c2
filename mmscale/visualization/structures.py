"""What a search by gradient keeps of every width and depth over time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from mmscale.errors import UsageError
from mmscale.visualization.style import BLUE, GREY, literal, new_figure, short, tidy

_MOST_ROWS = 200


def plot_structure(records: Sequence[Mapping], title: str = '') -> Figure:
    """Draws cost and budget above, and below what each group keeps, a row per group.

    Args:
        records: Lines of a search's ``structure.jsonl``, in their order.
        title: Title of the picture.

    Raises:
        ValueError: There are fewer than two records.
    """
    if len(records) < 2:
        raise UsageError(f'{len(records)} records are too few to draw, there must be 2 or more')
    iterations = [record['iteration'] for record in records]
    # More rows than these nobody can read, nor a picture hold.
    names = list(records[0]['structure'])
    names = names[:: math.ceil(len(names) / _MOST_ROWS)]
    kept = np.array(
        [[np.sum(record['structure'][name]) for record in records] for name in names], float
    )
    sizes = [_size(name, records[-1]) for name in names]
    largest = np.array([[size or row.max() or 1] for size, row in zip(sizes, kept, strict=True)])
    figure = new_figure(8, 2.6 + 0.17 * len(names))
    heights = [2.0, 0.4 + 0.17 * len(names)]
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=heights)
    metric = records[-1]['metric']
    above.plot(iterations, [record['budget'] for record in records], color=GREY, label='budget')
    above.plot(iterations, [record['value'] for record in records], color=BLUE, label='network')
    above.yaxis.set_major_formatter(lambda value, _: short(value))
    above.legend(frameon=False)
    tidy(above, '', metric, title)
    edges = np.array([2 * iterations[0] - iterations[1], *iterations])
    image = below.pcolormesh(
        edges, np.arange(len(names) + 1), kept / largest, cmap='viridis', vmin=0, vmax=1
    )
    below.set_yticks(
        np.arange(len(names)) + 0.5,
        [
            f'{literal(name.removeprefix("backbone."), 60)}: {int(row[-1])}'
            + (f' of {size}' if size else '')
            for name, row, size in zip(names, kept, sizes, strict=True)
        ],
        fontsize=7,
    )
    below.invert_yaxis()
    tidy(below, 'iteration', '')
    below.grid(False)
    share = 'share that is kept' if all(sizes) else 'share of the most that it kept'
    figure.colorbar(image, ax=below, label=share, pad=0.01)
    return figure


def _size(name: str, record: Mapping) -> int | None:
    """Elements of a group, which earlier versions did not write down of widths."""
    kept = record['structure'][name]
    return len(kept) if isinstance(kept, list) else record.get('sizes', {}).get(name)
