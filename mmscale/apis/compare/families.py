"""Puts families of networks side by side: rows, a table, a plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmscale.errors import UsageError
from mmscale.search.result_files import read_result
from mmscale.tables import make_table

if TYPE_CHECKING:
    from rich.table import Table

FAMILIES = {
    'searched': 'searched',
    'random': 'best of as many random',
    'compound': 'compound scaling of searched S0',
}


def standard_error(percent: float, images: int) -> float:
    """Standard error of an accuracy in percent that was measured on a number of images."""
    share = percent / 100
    return 100 * math.sqrt(share * (1 - share) / images)


def _read_family(path: Path) -> dict[str, Any]:
    result = read_result(path, ('scaling_stage', 'scaling', 'cost', 'score', 'arch'))
    for key in ('scaling_stages', 'convention'):
        if key not in result:
            raise UsageError(f'{path} has no {key}: it is not the result of a search for a family')
    return result


def collect(work_dir: Path, tested: Mapping[str, Mapping]) -> list[dict]:
    """One row per family and scaling stage, from the families' result.json and test results.

    Args:
        work_dir: Holds ``<family>/result.json``.
        tested: ``accuracy`` in percent and number of ``images`` by ``<family> S<stage>``.

    Raises:
        FileNotFoundError: A result is missing.
        UsageError: One is damaged or of another kind.
    """
    rows = []
    for family in FAMILIES:
        result = _read_family(work_dir / family / 'result.json')
        for member in result['scaling_stages']:
            stage = member['scaling_stage']
            test = tested.get(f'{family} S{stage}')
            score = member['score']
            rows.append(
                {
                    'family': family,
                    'scaling_stage': stage,
                    'resolution': member['arch']['resolution'],
                    'depth': member['scaling']['depth'],
                    'width': member['scaling']['width'],
                    'blocks': sum(len(blocks) for blocks in member['arch']['stages']),
                    **member['cost'],
                    'convention': result['convention'],
                    # A network that could not be scored has none.
                    'supernet_score': score and 100 * score['correct'] / score['total'],
                    'supernet_images': score and score['total'],
                    'test_accuracy': test and test['accuracy'],
                    'test_images': test and test['images'],
                }
            )
    return rows


_COLUMNS = (
    *('S', 'px', 'depth', 'width', 'blocks', 'Mflop', 'kparam', 'kact'),
    *('supernet', 'test'),
)


def _with_error(percent: float | None, images: int | None) -> str:
    if percent is None or images is None:
        return '-'
    return f'{percent:.1f}±{1.96 * standard_error(percent, images):.1f}'


def table(rows: Sequence[Mapping]) -> Table:
    """A rich table of the rows; accuracies with 1.96 standard errors."""
    cells: list[tuple | None] = []
    for row, before in zip(rows, [None, *rows], strict=False):
        is_first = before is None or row['family'] != before['family']
        if is_first and before is not None:
            cells.append(None)
        cells.append(
            (
                row['family'] if is_first else None,
                row['scaling_stage'],
                row['resolution'],
                f'{row["depth"]:.2f}',
                f'{row["width"]:.2f}',
                row['blocks'],
                f'{row["flops"] / 1e6:.2f}',
                f'{row["params"] / 1e3:.0f}',
                f'{row["acts"] / 1e3:.0f}',
                _with_error(row['supernet_score'], row['supernet_images']),
                _with_error(row['test_accuracy'], row['test_images']),
            )
        )
    title = 'Scaling stages S of three families, percent right ± 1.96 standard errors'
    return make_table(title, ('family', *_COLUMNS), cells, dense=True)


def plot(rows: Sequence[Mapping], path: Path) -> None:
    """Draws test accuracy and super-supernet score against flops, a line per family."""
    from mmscale.visualization.style import new_figure, tidy

    figure = new_figure(10, 4.2)
    axes = figure.subplots(1, 2)
    for axis, kind, title in (
        (axes[0], 'test', 'trained from random weights: test accuracy'),
        (axes[1], 'supernet', 'in the super-supernet: score of the search'),
    ):
        value = 'test_accuracy' if kind == 'test' else 'supernet_score'
        for family, label in FAMILIES.items():
            points = [r for r in rows if r['family'] == family and r[value] is not None]
            errors = [1.96 * standard_error(r[value], r[f'{kind}_images']) for r in points]
            axis.errorbar(
                [r['flops'] / 1e6 for r in points],
                [r[value] for r in points],
                errors,
                marker='o',
                capsize=3,
                label=label,
            )
        axis.set_xscale('log', base=2)
        axis.xaxis.set_major_formatter('{x:g}')
        tidy(axis, 'million multiply-adds', 'percent', title)
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)
