"""Reads what a run leaves in its work dir, while it runs or afterwards; changes nothing."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from mmscale.apis.reports.records import Records, read_archive
from mmscale.arch.origin import Origin, origin_of, read_origin
from mmscale.config_parts import type_name
from mmscale.errors import one_line
from mmscale.launch.config_text import read_config_text
from mmscale.search.result_files import (
    LARGEST,
    check_event,
    check_settings,
    check_structure,
    read_result,
)
from mmscale.untrusted import (
    MOST_TEXT_BYTES,
    UntrustedFileError,
    check_work_dir,
    open_regular,
    read_bytes,
    read_text,
)

# Python takes up to 27 bytes for each of a line.
MOST_LINE_BYTES = 2**22
# Lines that are damaged before the rest of a file is not read.
_MOST_DAMAGED = 1000
# A training has dumped one config, and written one log each time it was started.
_MOST_CONFIGS = 16
_MOST_LOGS = 1000
_MOST_TAIL_BYTES = 2**18
_MOST_NAME_BYTES = 2**14


@dataclass
class RunFiles:
    """What lies in a work dir.

    Attributes:
        work_dir: The folder.
        result: Content of ``result.json``, None before the end of a search.
        events: Events of the search, in order: those of ``history.jsonl``.
        records: The networks of the archive.
        structures: What a search by gradient kept over time: lines of ``structure.jsonl``.
        settings: Of the search: of its result, or of its config before there is one.
        config: Those settings of the dumped config that are plain data.
        iterations: Iterations of a training that are known to be done.
        missing: What is not there or damaged, a sentence each.
    """

    work_dir: Path
    result: dict[str, Any] | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    records: Records = field(default_factory=Records)
    structures: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
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
    def space(self) -> dict[str, Any] | None:
        """The space of the dumped config, unchecked; None where it has none."""
        part = self.config.get('model')
        for key in ('detector', 'backbone', 'space'):
            if isinstance(part, dict) and (key in part or key != 'detector'):
                part = part.get(key)
        return part if isinstance(part, dict) else None

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
    run.structures = _in_order(run, _read_lines(run, 'structure.jsonl', check_structure))
    run.records = read_archive(work_dir / 'archive')
    run.missing += run.records.missing
    _read_config(run)
    run.settings = _settings(run)
    run.iterations = _iterations_done(work_dir)
    if run.is_search and run.result is None:
        run.missing.append('result.json: the search has not finished')
    return run


def json_lines(path: Path, most_bytes: int = MOST_TEXT_BYTES) -> Iterator[dict[str, Any] | None]:
    """Objects of a JSON-lines file; None for a damaged line, nothing for one not yet whole.

    Raises:
        UntrustedFileError: It is larger, or no regular file.
    """
    return _parsed(io.BytesIO(read_bytes(path, most_bytes)))


def _parsed(lines: Iterable[bytes]) -> Iterator[dict[str, Any] | None]:
    for line in lines:
        if not line.endswith(b'\n'):
            return  # It is being written, or was when the run was killed.
        try:
            data = json.loads(line) if len(line) <= MOST_LINE_BYTES else None
        except (ValueError, RecursionError):
            data = None
        yield data if isinstance(data, dict) else None


def _read_lines(
    run: RunFiles, name: str, check: Callable[[str, object], dict[str, Any]]
) -> list[dict[str, Any]]:
    """What a check keeps of the lines of a JSON-lines file; what is left out is noted."""
    path = run.work_dir / name
    if not path.is_file():
        return []
    whole: list[dict[str, Any]] = []
    damaged, first = 0, ''
    try:
        for number, line in enumerate(json_lines(path), start=1):
            try:
                whole.append(check(f'line {number}', line))
            except ValueError as error:
                damaged, first = damaged + 1, first or str(error)
            if damaged == _MOST_DAMAGED:
                run.missing.append(f'{name}: what follows line {number} is left out')
                break
    except UntrustedFileError as error:
        run.missing.append(f'{name}: left out, {error}')
    if damaged:
        run.missing.append(f'{name}: {damaged} damaged lines are left out; {first:.200}')
    return whole


def _read_config(run: RunFiles) -> None:
    paths = sorted(run.work_dir.glob('*.py'))
    for path in paths[:_MOST_CONFIGS]:
        try:
            run.config |= read_config_text(read_text(path))
        except (OSError, ValueError) as error:
            run.missing.append(f'{path.name:.100}: not a config ({one_line(error):.200})')
    if len(paths) > _MOST_CONFIGS:
        run.missing.append(f'of {len(paths):,} configs {_MOST_CONFIGS} are read')


def read_settings(work_dir: Path) -> RunFiles:
    """Reads the dumped configs of a work dir that was checked, and nothing else."""
    run = RunFiles(work_dir)
    _read_config(run)
    return run


def _in_order(run: RunFiles, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines of a structure that follow each other and are of the groups of the last one."""
    fitting: list[dict[str, Any]] = []
    for line in reversed(lines):
        later = fitting[-1] if fitting else None
        if later is None or (
            line['iteration'] < later['iteration']
            and line['structure'].keys() == later['structure'].keys()
        ):
            fitting.append(line)
    if len(fitting) < len(lines):
        run.missing.append(
            f'structure.jsonl: {len(lines) - len(fitting)} lines are left out, of other groups or '
            'not in order'
        )
    return fitting[::-1]


def _settings(run: RunFiles) -> dict[str, Any]:
    config = run.config.get('test_cfg')
    settings = {**(config if isinstance(config, dict) else {})}
    if isinstance(settings.get('search'), dict):
        settings |= settings['search']
    # Configs say None for what is not set, and may have tuples.
    settings = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in settings.items()
        if value is not None
    }
    budgets = settings.get('budget')
    if isinstance(budgets, dict) and budgets:
        # As a result says it: the first one grows.
        metric, first = next(iter(budgets.items()))
        settings |= {'budget': first, 'metric': metric, 'budgets': budgets}
    try:
        check_settings('test_cfg', settings)
    except ValueError as error:
        run.missing.append(f'settings of the search: left out, {error}')
        settings = {}
    if run.result is not None:
        settings |= run.result['settings']
        settings |= {k: run.result[k] for k in ('metric',) if k in run.result}
    return settings


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
    run = read_settings(path.parent)
    names = [file.name for file in sorted(path.parent.glob('*.py'))]
    return origin_of(run.config, names[0]) if names else None


def _iterations_done(work_dir: Path) -> int:
    """The last iteration that a checkpoint or a log line of a training is of."""
    steps = [0]
    last = work_dir / 'last_checkpoint'
    if last.is_file():
        found = re.search(rb'iter_(\d{1,15})\.pth', _end_of(last, _MOST_NAME_BYTES))
        steps += [int(found.group(1))] if found else []
    for path in islice(work_dir.glob('*/vis_data/scalars.json'), _MOST_LOGS):
        for line in _parsed(io.BytesIO(_end_of(path, _MOST_TAIL_BYTES))):
            step = line and line.get('step')
            if type(step) is int and step < LARGEST:
                steps.append(step)
    return max(steps)


def _end_of(path: Path, most_bytes: int) -> bytes:
    """The last bytes of a file: the log of a long training need not be read as a whole."""
    with open_regular(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - most_bytes))
        return file.read(most_bytes)
