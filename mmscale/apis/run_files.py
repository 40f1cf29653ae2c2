"""Reads what a run leaves in its work dir, while it runs or afterwards; changes nothing."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmscale.apis.launch import UsageError
from mmscale.search import Archive


@dataclass
class RunFiles:
    """What lies in a work dir.

    Attributes:
        work_dir: The folder.
        result: Content of ``result.json``, None before the end of a search.
        events: Events of the search, in order: those of ``history.jsonl``.
        records: Scored networks, see :meth:`mmscale.search.Archive.records`.
        config: Those settings of the dumped config that are plain data.
        iterations: Iterations of a training that are known to be done.
        missing: What is not there or damaged, a sentence each.
    """

    work_dir: Path
    result: dict[str, Any] | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
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
        is_supernet = isinstance(model, dict) and model.get('type') == 'mmscale.SuperNetClassifier'
        return is_supernet and bool(self.config.get('train_cfg'))


def read_run(work_dir: Path) -> RunFiles:
    """Reads a work dir.

    Raises:
        UsageError: A file that is complete by nature is damaged.
    """
    run = RunFiles(work_dir)
    result = work_dir / 'result.json'
    if result.is_file():
        run.result = _read_json(result)
    _read_history(run)
    _read_archive(run)
    _read_config(run)
    run.iterations = _iterations_done(work_dir)
    if run.is_search and run.result is None:
        run.missing.append('result.json: the search has not finished')
    return run


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f'{path}: not a JSON file ({error})') from error
    if not isinstance(data, dict):
        raise UsageError(f'{path}: not the result of a search')
    return data


def _json_lines(path: Path) -> Iterator[dict[str, Any] | None]:
    """Objects of a JSON-lines file; None for a damaged line, nothing for one not yet whole."""
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b'\n'):
            return  # It is being written, or was when the run was killed.
        try:
            data = json.loads(line)
        except (ValueError, RecursionError):
            data = None
        yield data if isinstance(data, dict) else None


def _read_history(run: RunFiles) -> None:
    path = run.work_dir / 'history.jsonl'
    if path.is_file():
        lines = list(_json_lines(path))
        run.events = [line for line in lines if line is not None and 'kind' in line]
        damaged = len(lines) - len(run.events)
        if damaged:
            run.missing.append(f'history.jsonl: {damaged} damaged lines are left out')


def _has_whole_line(path: Path) -> bool:
    with path.open('rb') as file:
        return file.readline().endswith(b'\n')


def _read_archive(run: RunFiles) -> None:
    directory = run.work_dir / 'archive'
    if not any(_has_whole_line(path) for path in directory.glob('rank*.jsonl')):
        return  # Not even a header is whole yet.
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            archive = Archive.open_existing(directory)
        run.records = list(archive.records())
    except (OSError, ValueError) as error:
        raise UsageError(' '.join(str(error).split())) from error
    run.missing += [str(warning.message) for warning in caught]


def _read_config(run: RunFiles) -> None:
    """Reads the dumped config as data: it is Python, but nothing of it is executed."""
    for path in sorted(run.work_dir.glob('*.py')):
        try:
            tree = ast.parse(path.read_text(encoding='utf-8'))
        except (OSError, SyntaxError, ValueError, RecursionError):
            run.missing.append(f'{path.name}: not a config')
            continue
        for statement in tree.body:
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                try:
                    run.config[statement.targets[0].id] = _value(statement.value)
                except (RecursionError, TypeError, ValueError):
                    continue  # More than plain data: nothing that a report needs.


def _value(node: ast.expr) -> Any:
    """The value of plain data as MMEngine dumps it: literals and calls of ``dict``."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict':
        if not node.args and all(keyword.arg for keyword in node.keywords):
            return {str(keyword.arg): _value(keyword.value) for keyword in node.keywords}
    elif isinstance(node, ast.List | ast.Tuple):
        items = [_value(item) for item in node.elts]
        return items if isinstance(node, ast.List) else tuple(items)
    elif isinstance(node, ast.Dict) and None not in node.keys:
        return {_value(k): _value(v) for k, v in zip(node.keys, node.values, strict=True)}
    return ast.literal_eval(node)


def _iterations_done(work_dir: Path) -> int:
    """The last iteration that a checkpoint or a log line of a training is of."""
    steps = [0]
    last = work_dir / 'last_checkpoint'
    if last.is_file():
        found = re.search(r'iter_(\d+)\.pth', last.read_text(encoding='utf-8', errors='replace'))
        steps += [int(found.group(1))] if found else []
    for path in work_dir.glob('*/vis_data/scalars.json'):
        lines = [line['step'] for line in _json_lines(path) if line and 'step' in line]
        steps += [step for step in lines if isinstance(step, int)]
    return max(steps)
