"""What a report takes from an archive: checked, of bounded size; what is damaged is left out."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from mmscale.arch import Arch, Block
from mmscale.arch.arch import SqueezeExcite
from mmscale.search import Archive
from mmscale.search.archive import MOST_LINE_BYTES
from mmscale.untrusted import open_regular

_METRICS = ('flops', 'params', 'acts')
# Networks that are drawn: to read so many takes some seconds.
_MOST_RECORDS = 5_000
# Blocks of all of them together before the rest is left out.
_MOST_DRAWN_BLOCKS = 2_000_000
_MOST_SENTENCES = 5


@dataclass(frozen=True)
class Evaluated:
    """A scored network of an archive, without its Arch: thousands of those take much memory.

    Attributes:
        digest: Of its Arch.
        score: Between 0 and 1.
        cost: By the names of a Cost.
        resolution: Side of its input, in pixels.
        depth: Number of its blocks.
        width: Channels of its last network stage.
        total: What the score is a share of.
    """

    digest: str
    score: Fraction
    cost: dict[str, int]
    resolution: int
    depth: int
    width: int
    total: int = 1


@dataclass
class Records:
    """What there is in an archive.

    Attributes:
        archive: The archive; None before it has a whole header.
        number: Number of scored networks.
        evaluated: The scored networks; of very many the best of every cost and a sample.
        blocks: How often these have which block, apart from its residual and its stride.
        widths: How many of these have which width (second) in which network stage (first).
        missing: What was left out, a sentence each.
    """

    archive: Archive | None = None
    number: int = 0
    evaluated: list[Evaluated] = field(default_factory=list)
    blocks: Counter[Block] = field(default_factory=Counter)
    widths: Counter[tuple[int, int]] = field(default_factory=Counter)
    missing: list[str] = field(default_factory=list)

    def archs(self, digests: Collection[str]) -> dict[str, Arch]:
        """Reads the Archs of networks; those that are damaged are left out."""
        if self.archive is None:
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # reading has told of them before
            found = self.archive.records(digests)
            return {one['digest']: Arch.from_json(one['arch']) for one in found}


def read_archive(directory: Path) -> Records:
    """Reads an archive, which a search may be writing.

    Args:
        directory: Where its files lie; nothing may be there yet.

    Raises:
        UsageError: A file is no archive, or of another version.
    """
    records = Records()
    if not any(_has_whole_line(path) for path in directory.glob('rank*.jsonl')):
        return records  # Not even a header is whole yet.
    with _telling(records.missing):
        archive = records.archive = Archive.open_existing(directory)
        records.number = len(archive) - len(archive.failures)
        kept = kept_digests(archive, records.number, _MOST_RECORDS)
        _take(records, archive.records(kept))
    if kept is not None:
        records.missing.append(
            f'{len(records.evaluated):,} of the {records.number:,} networks evaluated are drawn: '
            'those that are best at their cost, of the others every so many'
        )
    failures = Counter(f'{failure.kind:.100}' for failure in archive.failures.values())
    records.missing += [
        f'{number} networks could not be scored: {kind}'
        for kind, number in failures.most_common(_MOST_SENTENCES)
    ]
    others = failures.total() - sum(n for _, n in failures.most_common(_MOST_SENTENCES))
    if others:
        records.missing.append(f'{others} networks could not be scored for other reasons')
    return records


def _has_whole_line(path: Path) -> bool:
    with open_regular(path) as file:
        line = file.readline(MOST_LINE_BYTES)
        return line.endswith(b'\n') or len(line) == MOST_LINE_BYTES


@contextmanager
def _telling(missing: list[str]) -> Iterator[None]:
    """Adds warnings, as of lines that are dropped: the first ones, and how many others."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        yield
    missing += [f'{warning.message!s:.300}' for warning in caught[:_MOST_SENTENCES]]
    if len(caught) > _MOST_SENTENCES:
        missing.append(f'archive: {len(caught) - _MOST_SENTENCES} more warnings like these')


def _take(records: Records, found: Iterator[dict[str, Any]]) -> None:
    """Takes over what a report needs of each network."""
    blocks = 0
    counted: Counter[tuple] = Counter()
    for record in found:
        if blocks > _MOST_DRAWN_BLOCKS:
            records.missing.append(
                f'archive: {len(records.evaluated):,} networks are read, as they are so large'
            )
            break
        arch, score = record['arch'], record['score']
        whole = [block for stage in arch['stages'] for block in stage]
        blocks += len(whole)
        counted.update(map(_key, whole))
        records.widths.update(
            (i, stage[-1]['out_channels']) for i, stage in enumerate(arch['stages'])
        )
        records.evaluated.append(
            Evaluated(
                record['digest'],
                Fraction(score['correct'], score['total']),
                record['cost'],
                arch['resolution'],
                len(whole),
                whole[-1]['out_channels'],
                score['total'],
            )
        )
    for (kind, kernel, *widths, groups, act, se), count in counted.items():
        excite = None if se is None else SqueezeExcite(*se)
        records.blocks[Block(kind, kernel, 1, *widths, groups, excite, act)] += count


def _key(block: dict[str, Any]) -> tuple:
    """What is counted of a block."""
    se = block['se']
    return (
        *(block['kind'], block['kernel'], block['in_channels'], block['hidden_channels']),
        *(block['out_channels'], block['groups'], block['act']),
        se and (se['channels'], se['act'], se['gate']),
    )


def kept_digests(archive: Archive, number: int, most: int) -> set[str] | None:
    """Of very many networks those whose Archs are read: the fronts, and an even sample.

    Args:
        archive: The archive.
        number: Its scored networks.
        most: So many are read all; of more, about so many in the sample, and as many of each
            front at most.

    Returns:
        Their digests; None for all.
    """
    if number <= most:
        return None
    digests, points = [], np.empty((number, 1 + len(_METRICS)))
    for record, point in zip(archive.records(archs=False), points, strict=True):
        digests.append(record['digest'])
        score, cost = record['score'], record['cost']
        point[:] = score['correct'] / score['total'], *(cost[metric] for metric in _METRICS)
    kept = set(digests[:: -(-number // most)])
    scores = points[:, 0]
    for costs in points.T[1:]:
        order = np.lexsort((-scores, costs))
        best_before = np.maximum.accumulate(np.concatenate([[-1.0], scores[order]]))[:-1]
        front = order[scores[order] > best_before]
        kept |= {digests[i] for i in front[:: -(-len(front) // most) or 1]}
    return kept
