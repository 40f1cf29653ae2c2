"""The networks of a scaling as tables, and their times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mmscale.apis.scaling.archs import build_scaled
from mmscale.apis.scaling.common import sides
from mmscale.cost import LatencyModel, LatencySetting, Scaled, measure_latency
from mmscale.tables import size_text

if TYPE_CHECKING:
    from rich.table import Table

_FOLDED = ('depths', 'widths', 'group widths', 'adjusted')


def milliseconds(
    made: Scaled, model: LatencyModel | None, setting: LatencySetting | None, repeats: int
) -> dict[str, float]:
    """Milliseconds of a batch: predicted where there is a model, measured where asked for.

    Args:
        made: The network.
        model: Predicts ``predicted_ms``.
        setting: What ``measured_ms`` is measured with.
        repeats: Timed runs.
    """
    found = {}
    if model is not None:
        found['predicted_ms'] = model.predict(made.default_cost)
    if setting is not None:
        timed = (setting.device, setting.batch, setting.dtype, setting.train)
        found['measured_ms'] = measure_latency(
            *build_scaled(made), *timed, repeats=repeats
        ).median_ms
    return found


def _table(title: str | None, columns: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(
        title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False
    )
    for column in columns:
        folded = column in _FOLDED
        justify = 'left' if folded or column == 'strategy' else 'right'
        table.add_column(column, justify=justify, no_wrap=not folded, overflow='fold')
    return table


def scaling_tables(
    rows: Sequence[Scaled], times: Sequence[Mapping[str, float]], title: str
) -> tuple[Table, Table]:
    """A table of costs, and one of shapes.

    Args:
        rows: The networks.
        times: Their :func:`milliseconds`.
        title: Of the first table.
    """
    from mmscale.visualization.style import short

    timed = (key.removesuffix('_ms') for key in times[0])
    costs = _table(
        title, ['strategy', 'factor', 'px', 'flops', 'params', 'acts', 'of target', *timed]
    )
    shapes = _table(None, ['strategy', 'factor', *_FOLDED])
    for made, own in zip(rows, times, strict=True):
        first = made.strategy, f'{made.factor:.4g}'
        costs.add_row(
            *first,
            size_text(sides(made.resolution)).removesuffix(' px'),
            *(short(value) for value in (made.cost.flops, made.cost.params, made.cost.acts)),
            f'{made.achieved / made.target:.3f}',
            *(f'{ms:.2f}' for ms in own.values()),
        )
        lists = made.network.depths, made.network.widths
        shapes.add_row(
            *first,
            *(' '.join(f'{n:g}' for n in numbers) for numbers in lists),
            ' '.join(map(str, made.group_widths or '-')),
            ', '.join(map(str, made.adjustments)) or '-',
        )
    return costs, shapes
