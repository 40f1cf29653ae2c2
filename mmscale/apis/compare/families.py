"""Puts families of networks side by side: rows, tables, a plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from mmscale.arch import Arch
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
# Of random families that nothing has chosen: their mean stands beside the best of them.
DRAWN = 'drawn'
STARTS = {'scratch': 'trained from random weights', 'warm': "trained from the search's weights"}


def standard_error(percent: float, images: int) -> float:
    """Standard error of an accuracy in percent that was measured on a number of images."""
    share = percent / 100
    return 100 * math.sqrt(share * (1 - share) / images)


def confidence(values: Sequence[float]) -> float | None:
    """Half the 95 % interval of a mean by Student's t; None of fewer than two values.

    Example:
        >>> round(confidence([70.0, 71.0, 72.0]), 2)
        2.48
    """
    from scipy.stats import t

    if len(values) < 2:
        return None
    return float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))


def _read_family(path: Path) -> dict[str, Any]:
    result = read_result(path, ('scaling_stage', 'scaling', 'cost', 'score', 'arch'))
    for key in ('scaling_stages', 'convention'):
        if key not in result:
            raise UsageError(f'{path} has no {key}: it is not the result of a search for a family')
    return result


def collect(work_dir: Path, tested: Mapping[str, Mapping], drawn: int = 0) -> list[dict]:
    """One row per family and scaling stage, from the families' result.json and test results.

    Args:
        work_dir: Holds ``<family>/result.json``.
        tested: By ``<family> S<stage>`` the ``accuracies`` in percent of all trainings, by what
            they started from (a key of :data:`STARTS`), and the number of test ``images``.
        drawn: Number of random families besides, ``drawn1`` and so on.

    Raises:
        FileNotFoundError: A result is missing.
        UsageError: One is damaged or of another kind.
    """
    rows = []
    for family in (*FAMILIES, *(f'{DRAWN}{i + 1}' for i in range(drawn))):
        result = _read_family(work_dir / family / 'result.json')
        for member in result['scaling_stages']:
            stage = member['scaling_stage']
            test = tested.get(f'{family} S{stage}', {})
            score = member['score']
            rows.append(
                {
                    'family': family,
                    'scaling_stage': stage,
                    'network': Arch.from_json(member['arch']).digest,
                    'resolution': member['arch']['resolution'],
                    'depth': member['scaling']['depth'],
                    'width': member['scaling']['width'],
                    'blocks': sum(len(blocks) for blocks in member['arch']['stages']),
                    **member['cost'],
                    'convention': result['convention'],
                    # A network that could not be scored has none.
                    'supernet_score': score and 100 * score['correct'] / score['total'],
                    'supernet_images': score and score['total'],
                    'test_accuracies': test.get('accuracies', {}),
                    'test_images': test.get('images'),
                }
            )
    return rows


def average(rows: Sequence[Mapping]) -> list[dict]:
    """The mean of the random families that nothing has chosen, a row per scaling stage.

    Returns:
        ``scaling_stage``, mean ``flops``, ``params`` and ``acts``, and of every family one value:
        ``supernet_scores``, and ``test_accuracies`` by what the trainings started from.
    """
    found = []
    drawn = [row for row in rows if row['family'].startswith(DRAWN)]
    for stage in sorted({row['scaling_stage'] for row in drawn}):
        own = [row for row in drawn if row['scaling_stage'] == stage]
        scores = [row['supernet_score'] for row in own if row['supernet_score'] is not None]
        accuracies = {
            start: [mean(a) for row in own if (a := row['test_accuracies'].get(start))]
            for start in STARTS
        }
        costs = {key: mean(row[key] for row in own) for key in ('flops', 'params', 'acts')}
        found.append(
            {
                'scaling_stage': stage,
                **costs,
                'supernet_scores': scores,
                'test_accuracies': accuracies,
            }
        )
    return found


def ranking(rows: Sequence[Mapping]) -> list[dict]:
    """How well the score of the search ranks trained networks, a row per scaling stage.

    Returns:
        ``scaling_stage``, and by what the trainings started from Kendall's ``tau`` (b) between
        score and mean accuracy, and the number of ``networks`` that were trained, none twice.
    """
    from scipy.stats import kendalltau

    found = []
    for stage in sorted({row['scaling_stage'] for row in rows}):
        taus, counts = {}, {}
        for start in STARTS:
            pairs = {
                row['network']: (row['supernet_score'], mean(accuracies))
                for row in rows
                if row['scaling_stage'] == stage
                and row['supernet_score'] is not None
                and (accuracies := row['test_accuracies'].get(start))
            }
            counts[start] = len(pairs)
            taus[start] = None
            if len(pairs) > 1:
                tau = float(kendalltau(*zip(*pairs.values(), strict=True)).statistic)
                # Of equal values there is none.
                taus[start] = tau if math.isfinite(tau) else None
        if any(counts.values()):
            found.append({'scaling_stage': stage, 'tau': taus, 'networks': counts})
    return found


_COLUMNS = ('S', 'px', 'depth', 'width', 'blocks', 'Mflop', 'kparam', 'supernet', *STARTS)


def _with_error(percent: float | None, images: int | None) -> str:
    if percent is None or images is None:
        return '-'
    return f'{percent:.1f}±{1.96 * standard_error(percent, images):.1f}'


def _with_spread(values: Sequence[float]) -> str:
    if not values:
        return '-'
    spread = confidence(values)
    return f'{mean(values):.1f}' + ('' if spread is None else f'±{spread:.1f}')


def table(rows: Sequence[Mapping]) -> Table:
    """A rich table of the families, and of the random ones' mean.

    A score has 1.96 standard errors of the images that it was counted on. A mean has its 95 %
    interval over trainings, or over families.
    """
    cells: list[tuple | None] = []
    named = [row for row in rows if row['family'] in FAMILIES]
    for row, before in zip(named, [None, *named], strict=False):
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
                _with_error(row['supernet_score'], row['supernet_images']),
                *(_with_spread(row['test_accuracies'].get(start, ())) for start in STARTS),
            )
        )
    averages = average(rows)
    for i, row in enumerate(averages):
        if not i:
            cells.append(None)
        cells.append(
            (
                None if i else 'random, mean',
                row['scaling_stage'],
                *(None for _ in range(4)),
                f'{row["flops"] / 1e6:.2f}',
                f'{row["params"] / 1e3:.0f}',
                _with_spread(row['supernet_scores']),
                *(_with_spread(row['test_accuracies'][start]) for start in STARTS),
            )
        )
    title = 'Scaling stages S of the families, percent right; ± is half of a 95 % interval'
    return make_table(title, ('family', *_COLUMNS), cells, dense=True)


def ranking_table(rows: Sequence[Mapping]) -> Table:
    """A rich table of :func:`ranking`."""

    def cell(tau: float | None, networks: int) -> str:
        return '-' if tau is None else f'{tau:.2f} ({networks})'

    cells = [
        (
            f'S{row["scaling_stage"]}',
            *(cell(row['tau'][start], row['networks'][start]) for start in STARTS),
        )
        for row in ranking(rows)
    ]
    title = "Kendall's tau between the search's score and trained accuracy (networks)"
    return make_table(title, ('scaling stage', *STARTS), cells)


def _points(rows: Sequence[Mapping], kind: str) -> list[tuple[float, float, float]]:
    """Flops, value and half of its interval, of the rows that have a value."""
    points = []
    for row in rows:
        if 'supernet_scores' in row:
            is_score = kind == 'supernet'
            values = row['supernet_scores'] if is_score else row['test_accuracies'][kind]
        elif kind == 'supernet':
            score, images = row['supernet_score'], row['supernet_images']
            if score is not None:
                points.append((row['flops'] / 1e6, score, 1.96 * standard_error(score, images)))
            continue
        else:
            values = row['test_accuracies'].get(kind, ())
        if values:
            points.append((row['flops'] / 1e6, mean(values), confidence(values) or 0.0))
    return points


def plot(rows: Sequence[Mapping], path: Path) -> None:
    """Draws accuracies and super-supernet score against flops, a line per family."""
    from mmscale.visualization.style import new_figure, tidy

    figure = new_figure(13, 4.2)
    axes = figure.subplots(1, 3)
    titles = {**STARTS, 'supernet': 'in the super-supernet: score of the search'}
    lines = {
        label: [row for row in rows if row['family'] == family]
        for family, label in FAMILIES.items()
    }
    number = len({row['family'] for row in rows if row['family'].startswith(DRAWN)})
    if number:
        lines[f'mean of {number} random'] = average(rows)
    for axis, (kind, title) in zip(axes, titles.items(), strict=True):
        for label, own in lines.items():
            points = _points(own, kind)
            columns = zip(*points, strict=True) if points else ([], [], [])
            axis.errorbar(*columns, marker='o', capsize=3, label=label)
        axis.set_xscale('log', base=2)
        axis.xaxis.set_major_formatter('{x:g}')
        tidy(axis, 'million multiply-adds', 'percent', title)
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)
