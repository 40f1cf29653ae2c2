"""Scaling rules of the user's own, from files that are read as data."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmscale.arch.checks import check_keys
from mmscale.arch.json_files import read_json
from mmscale.arch.rules import ScalingRule
from mmscale.errors import UsageError, one_line
from mmscale.launch.config_text import read_config_text
from mmscale.untrusted import read_text

_EXPONENTS = ('depth', 'width', 'resolution', 'group_width')


def _content(path: Path) -> Mapping[str, Any]:
    if path.suffix == '.json':
        return check_keys(str(path), read_json(path), None)
    text = read_text(path)
    try:
        found, statements = read_config_text(text), ast.parse(text).body
    except ValueError as error:
        raise UsageError(f'{path} cannot be read as data: {one_line(error)}') from None
    for statement in statements:
        names = [getattr(part, 'id', '') for part in getattr(statement, 'targets', ())]
        is_text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if not is_text and not found.keys() >= set(names or ['']):
            raise UsageError(
                f'{path}: line {statement.lineno} is no rule of plain numbers, such as '
                'deep = dict(depth=0.6, width=0.2)'
            )
    return found


def _rule(owner: str, name: str, exponents: object) -> ScalingRule:
    given = check_keys(owner, exponents, _EXPONENTS)
    if not given:
        raise UsageError(f'{owner}: no exponent is given; there are {", ".join(_EXPONENTS)}')
    if not name.replace('-', '').replace('_', '').replace('.', '').isalnum():
        raise UsageError(f'{owner}: a name is of letters, digits, and - _ . between them')
    try:
        return ScalingRule(name, *(given.get(key, 0.0) for key in _EXPONENTS[:3]),
                           given.get('group_width'))  # fmt: skip
    except ValueError as error:
        raise UsageError(f'{owner}: {str(error).removeprefix("scaling rule: ")}') from None


def read_rules(path: str | Path) -> list[ScalingRule]:
    """The rules of a file, of which nothing is executed.

    Args:
        path: A JSON file, ``{"deep": {"depth": 0.6, "width": 0.2}}``, or a Python file that
            assigns the same, ``deep = dict(depth=0.6, width=0.2)``: exponents of the factor,
            those left out being 0, but for ``group_width``, which is then the width's.

    Raises:
        UsageError: There is no such file, it is malformed or it has no rules.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f'{path} is not a file; it must hold scaling rules')
    rules = [
        _rule(f'{path}: {name}', name, exponents) for name, exponents in _content(path).items()
    ]
    if not rules:
        raise UsageError(f'{path} has no scaling rules, such as deep = dict(depth=0.6, width=0.2)')
    return rules
