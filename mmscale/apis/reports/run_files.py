"""Reads what a run leaves in its work dir, while it runs or afterwards; changes nothing."""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmscale.arch.origin import Origin, origin_of, read_origin
from mmscale.config_parts import type_name
from mmscale.launch.config_text import read_config_text
from mmscale.search import Archive
from mmscale.search.archive import MOST_LINE_BYTES
from mmscale.search.result_files import check_event, check_structure, read_result
from mmscale.untrusted import check_work_dir

_METRICS = ('flops', 'params', 'acts')
# Archs of so many networks take some 150 MB, and of so many blocks up to 500 MB.
_MOST_RECORDS = 5_000
_MOST_BLOCKS = 400_000


@dataclass
class RunFiles:
    """What lies in a work dir.

    Attributes:
        work_dir: The folder.
        result: Content of ``result.json``, None before the end of a search.
        events: Events of the search, in order: those of ``history.jsonl``.
        evaluated: Number of scored networks.
        records: The scored networks, see :meth:`mmscale.search.Archive.records`; of very many
            the best of every cost and a sample.
        structures: What a search by gradient kept over time: lines of ``structure.jsonl``.
        config: Those settings of the dumped config that are plain data.
        iterations: Iterations of a training that are known to be done.
        missing: What is not there or damaged, a sentence each.
    """

    work_dir: Path
    result: dict[str, Any] | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    evaluated: int = 0
    records: list[dict[str, Any]] = field(default_factory=list)
    structures: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    iterations: int = 0
    missing: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.work_dir.resolve().name

    @property
    def is_search(self) -> bool:
        """Whether a search works or worked here."""
        begun = bool(self.events) or (self.work_dir / 'archive').is_dir()
        return self.result is not None or begun

    @property
    def is_supernet(self) -> bool:
        """Whether a super-supernet is or was trained here."""
        model = self.config.get('model')
        is_supernet = isinstance(model, dict) and type_name(model) == 'SuperNetClassifier'
        return is_supernet and bool(self.config.get('train_cfg'))


def read_run(work_dir: Path) -> RunFiles:
    """Reads a work dir.

    Raises:
        UsageError: A file that is complete by nature is damaged.
        UntrustedFileError: There is a link out of the folder, or no regular file.
    """
    check_work_dir(work_dir)
    run = RunFiles(work_dir)
    result = work_dir / 'result.json'
    if result.is_file():
        run.result = read_result(result, ('scaling_stage', 'cost', 'score', 'arch'))
    run.events = _read_lines(run, 'history.jsonl', check_event)
    run.structures = _read_lines(run, 'structure.jsonl', check_structure)
    _read_archive(run)
    _read_config(run)
    run.iterations = _iterations_done(work_dir)
    if run.is_search and run.result is None:
        run.missing.append('result.json: the search has not finished')
    return run


def json_lines(path: Path) -> Iterator[dict[str, Any] | None]:
    """Objects of a JSON-lines file; None for a damaged line, nothing for one not yet whole."""
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b'\n'):
            return  # It is being written, or was when the run was killed.
        try:
            data = json.loads(line)
        except (ValueError, RecursionError):
            data = None
        yield data if isinstance(data, dict) else None


def _read_lines(
    run: RunFiles, name: str, check: Callable[[str, object], None]
) -> list[dict[str, Any]]:
    """Those lines of a JSON-lines file that a check lets pass; what is left out is noted."""
    path = run.work_dir / name
    if not path.is_file():
        return []
    whole, problems = [], []
    for number, line in enumerate(json_lines(path), start=1):
        try:
            check(f'line {number}', line)
        except ValueError as error:
            problems.append(str(error))
        else:
            whole.append(line)
    if problems:
        run.missing.append(
            f'{name}: {len(problems)} damaged lines are left out; {problems[0]:.200}'
        )
    return whole


def _has_whole_line(path: Path) -> bool:
    with path.open('rb') as file:
        line = file.readline(MOST_LINE_BYTES)
        return line.endswith(b'\n') or len(line) == MOST_LINE_BYTES


def _read_archive(run: RunFiles) -> None:
    directory = run.work_dir / 'archive'
    if not any(_has_whole_line(path) for path in directory.glob('rank*.jsonl')):
        return  # Not even a header is whole yet.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        archive = Archive.open_existing(directory)
        run.evaluated = len(archive) - len(archive.failures)
        run.records = list(_of_bounded_size(archive.records(_kept(archive, run.evaluated))))
    run.missing += [str(warning.message) for warning in caught]
    if len(run.records) < run.evaluated:
        run.missing.append(
            f'{len(run.records):,} of the {run.evaluated:,} networks evaluated are drawn: all '
            'that are best at their cost, of the others every so many'
        )
    failures = Counter(failure.kind for failure in archive.failures.values())
    run.missing += [
        f'{number} networks could not be scored: {kind}' for kind, number in failures.most_common()
    ]


def _of_bounded_size(records: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The first records, as long as their Archs have not too many blocks in all."""
    blocks = 0
    for record in records:
        blocks += sum(map(len, record['arch']['stages']))
        if blocks > _MOST_BLOCKS:
            return
        yield record


def _kept(archive: Archive, number: int) -> set[str] | None:
    """Of very many networks those whose Archs are read: the fronts, and an even sample."""
    if number <= _MOST_RECORDS:
        return None
    digests, points = [], np.empty((number, 1 + len(_METRICS)))
    for record, point in zip(archive.records(archs=False), points, strict=True):
        digests.append(record['digest'])
        score, cost = record['score'], record['cost']
        point[:] = score['correct'] / score['total'], *(cost[metric] for metric in _METRICS)
    kept = set(digests[:: -(-number // _MOST_RECORDS)])
    scores = points[:, 0]
    for costs in points.T[1:]:
        order = np.lexsort((-scores, costs))
        best_before = np.maximum.accumulate(np.concatenate([[-1.0], scores[order]]))[:-1]
        kept |= {digests[i] for i in order[scores[order] > best_before]}
    return kept


def _read_config(run: RunFiles) -> None:
    for path in sorted(run.work_dir.glob('*.py')):
        try:
            run.config |= read_config_text(path.read_text(encoding='utf-8'))
        except (MemoryError, OSError, SyntaxError, ValueError, RecursionError):
            run.missing.append(f'{path.name}: not a config')


def result_origin(path: Path) -> Origin | None:
    """Where a search's ``result.json`` is from: what it says, or the config dumped beside it.

    Raises:
        UsageError: What it says is not allowed.
        UntrustedFileError: There is a link out of the folder, or no regular file.
    """
    found = read_origin(path)
    if found is not None:
        return found
    check_work_dir(path.parent)
    run = RunFiles(path.parent)
    _read_config(run)
    names = [file.name for file in sorted(path.parent.glob('*.py'))]
    return origin_of(run.config, names[0]) if names else None


def _iterations_done(work_dir: Path) -> int:
    """The last iteration that a checkpoint or a log line of a training is of."""
    steps = [0]
    last = work_dir / 'last_checkpoint'
    if last.is_file():
        found = re.search(r'iter_(\d+)\.pth', last.read_text(encoding='utf-8', errors='replace'))
        steps += [int(found.group(1))] if found else []
    for path in work_dir.glob('*/vis_data/scalars.json'):
        lines = [line['step'] for line in json_lines(path) if line and 'step' in line]
        steps += [step for step in lines if isinstance(step, int)]
    return max(steps)
