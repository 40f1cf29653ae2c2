"""Counts of the networks that a search evaluated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mmscale.apis.reports.run_files import RunFiles
from mmscale.arch import SearchSpace
from mmscale.errors import FOREIGN_ERRORS
from mmscale.search.varied import BLOCK_WORDS, by_size, varied
from mmscale.visualization import Histogram

_BINS = 8


def evaluated_histograms(run: RunFiles) -> list[Histogram]:
    """Of the networks in an archive: inputs, depths, widths, blocks, costs, scores.

    Of blocks kernels are counted, and what else the space of the dumped config chooses.
    """
    records = run.records.evaluated
    scores = [100 * float(record.score) for record in records]
    flops = [np.log2(record.cost['flops'] / 1e6) for record in records]
    return [
        _counted('Input', 'side (px)', Counter(record.resolution for record in records)),
        _counted('Depth', 'blocks', Counter(record.depth for record in records)),
        _counted(
            'Width',
            'channels of the last network stage',
            Counter(record.width for record in records),
        ),
        *_choices(run),
        _binned('Cost', 'M multiply-adds', flops, lambda value: f'{2**value:.3g}'),
        _binned('Score', 'score (%)', scores, lambda value: f'{value:.1f}'),
    ]


def _choices(run: RunFiles) -> list[Histogram]:
    """What the space chooses of network stages and of blocks."""
    chosen = _varied(run)
    found = []
    for name, (title, word) in BLOCK_WORDS.items():
        if name == 'kernel' or name in chosen:
            counts: Counter[str] = Counter()
            for block, count in run.records.blocks.items():
                counts[word(block)] += count
            title = f'{title[0].upper()}{title[1:]} of all blocks'
            found.append(_counted(title, name.replace('_', ' '), counts, 'blocks'))
    if 'channels' in chosen:
        widths = {f'{stage + 1}:{c}': n for (stage, c), n in sorted(run.records.widths.items())}
        found.append(Histogram('Channels', 'network stage:channels', 'networks', widths))
    return found


def _varied(run: RunFiles) -> tuple[str, ...]:
    """What the space of the dumped config chooses; nothing where it has none."""
    if run.space is None:
        return ()
    try:
        return varied(SearchSpace.from_config(run.space))
    except FOREIGN_ERRORS:
        return ()


def _counted(
    title: str, xlabel: str, counts: Mapping[int | str, int], counted: str = 'networks'
) -> Histogram:
    ordered = sorted(counts, key=lambda value: by_size(f'{value}'))
    return Histogram(title, xlabel, counted, {f'{value}': counts[value] for value in ordered})


def _binned(
    title: str, xlabel: str, values: Sequence[float], label: Callable[[float], str]
) -> Histogram:
    """Counts in bins of equal width, each named after its lower edge."""
    # Bins between neighbouring floats have no width.
    distinct = len(set(np.round(values, 9)))
    counts, edges = np.histogram(values, min(_BINS, distinct))
    named: dict[str, float] = {}
    for number, edge in zip(counts, edges, strict=False):
        named[label(edge)] = named.get(label(edge), 0) + int(number)
    return Histogram(title, f'{xlabel}, from', 'networks', named)
