"""What a report takes from an archive: checked, of bounded size; what is damaged is left out."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from mmscale.arch import Arch
from mmscale.errors import UsageError
from mmscale.search import Archive
from mmscale.search.archive import MOST_LINE_BYTES
from mmscale.search.entry import unpacked
from mmscale.search.result_files import check_record
from mmscale.untrusted import open_regular

_METRICS = ('flops', 'params', 'acts')
# Networks that are drawn: to read so many takes some seconds.
_MOST_RECORDS = 5_000
# Blocks of all of them together, and networks that are damaged, before the rest is left out.
_MOST_DRAWN_BLOCKS = 2_000_000
_MOST_DAMAGED = 100
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
    """

    digest: str
    score: Fraction
    cost: dict[str, int]
    resolution: int
    depth: int
    width: int


@dataclass
class Records:
    """What there is in an archive.

    Attributes:
        archive: The archive; None before it has a whole header.
        number: Number of scored networks.
        evaluated: The scored networks; of very many the best of every cost and a sample.
        kernels: How many blocks of these have which kernel.
        missing: What was left out, a sentence each.
    """

    archive: Archive | None = None
    number: int = 0
    evaluated: list[Evaluated] = field(default_factory=list)
    kernels: Counter[int] = field(default_factory=Counter)
    missing: list[str] = field(default_factory=list)

    def archs(self, digests: Collection[str]) -> dict[str, Arch]:
        """Reads the Archs of networks; those that are damaged are left out."""
        found = {}
        for entry in _entries(self.archive, digests) if self.archive is not None else ():
            with suppress(RecursionError, ValueError):
                if entry is not None:
                    found[entry['digest']] = Arch.from_json(unpacked(entry['arch']))
        return found


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
    archive = records.archive = _opened(directory, records.missing)
    records.number = len(archive) - len(archive.failures)
    kept = _kept(archive, records.number)
    problems = _take(records, kept)
    if problems:
        records.missing.append(
            f'archive: {len(problems):,} networks are left out; {problems[0]:.200}'
        )
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


def _opened(directory: Path, missing: list[str]) -> Archive:
    """Opens an archive; of the lines that it drops some are told, however many they are."""
    dropped = Counter[str]()

    def note(message: Warning | str, *_: object) -> None:
        dropped['all'] += 1
        if dropped['all'] <= _MOST_SENTENCES:
            missing.append(f'{message!s:.300}')

    with warnings.catch_warnings():
        warnings.simplefilter('always')
        warnings.showwarning = note
        try:
            archive = Archive.open_existing(directory)
        except RecursionError:
            raise UsageError(f'{directory}: no archive: its lines are nested too deeply') from None
    if dropped['all'] > _MOST_SENTENCES:
        missing.append(f'archive: {dropped["all"] - _MOST_SENTENCES:,} more lines are dropped')
    return archive


def _entries(
    archive: Archive, digests: Collection[str] | None = None
) -> Iterator[dict[str, Any] | None]:
    """The content of lines, None where it is damaged."""
    for line in archive.lines(digests):
        try:
            entry = json.loads(line)['entry']
        except (KeyError, RecursionError, ValueError):
            entry = None
        if not (isinstance(entry, dict) and isinstance(entry.get('arch'), str)):
            entry = None
        if entry is None or 'failure' not in entry:
            yield entry


def _take(records: Records, kept: Collection[str] | None) -> list[str]:
    """Takes over what is whole; returns what is wrong with the others, a line each."""
    assert records.archive is not None
    problems, blocks = [], 0
    for number, entry in enumerate(_entries(records.archive, kept), start=1):
        owner = f'network {number}'
        if blocks > _MOST_DRAWN_BLOCKS or len(problems) == _MOST_DAMAGED:
            why = 'so many are damaged' if len(problems) == _MOST_DAMAGED else 'they are so large'
            records.missing.append(f'archive: the first {number - 1:,} networks are read: {why}')
            break
        try:
            if entry is None:
                raise UsageError(f'{owner}: its line is damaged')
            entry['arch'] = unpacked(entry['arch'])
            check_record(owner, entry)
        except (RecursionError, ValueError) as error:
            problems.append(str(error))
            continue
        arch, score = entry['arch'], entry['score']
        whole = [block for stage in arch['stages'] for block in stage]
        blocks += len(whole)
        records.kernels.update(block['kernel'] for block in whole)
        records.evaluated.append(
            Evaluated(
                entry['digest'],
                Fraction(score['correct'], score['total']),
                {metric: entry['cost'][metric] for metric in _METRICS},
                arch['resolution'],
                len(whole),
                whole[-1]['out_channels'],
            )
        )
    return problems


def _kept(archive: Archive, number: int) -> set[str] | None:
    """Of very many networks those whose Archs are read: the fronts, and an even sample."""
    if number <= _MOST_RECORDS:
        return None
    digests, points = [], np.empty((number, 1 + len(_METRICS)))
    for entry in _entries(archive):
        try:
            if entry is None:
                continue
            check_record('network', entry, with_arch=False)
        except ValueError:
            continue
        score, cost = entry['score'], entry['cost']
        points[len(digests)] = (
            score['correct'] / score['total'], *(cost[metric] for metric in _METRICS)
        )  # fmt: skip
        digests.append(entry['digest'])
    points = points[: len(digests)]
    kept = set(digests[:: -(-number // _MOST_RECORDS)])
    scores = points[:, 0]
    for costs in points.T[1:]:
        order = np.lexsort((-scores, costs))
        best_before = np.maximum.accumulate(np.concatenate([[-1.0], scores[order]]))[:-1]
        front = order[scores[order] > best_before]
        kept |= {digests[i] for i in front[:: -(-len(front) // _MOST_RECORDS) or 1]}
    return kept
