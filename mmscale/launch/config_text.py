"""Configs as data: what MMEngine dumped is Python, but nothing of it is executed here."""

from __future__ import annotations

import ast
from typing import Any


def read_config_text(text: str) -> dict[str, Any]:
    """Those settings of a dumped config that are plain data.

    Raises:
        SyntaxError, ValueError, RecursionError: The text is not Python.
    """
    settings = {}
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            try:
                settings[statement.targets[0].id] = _value(statement.value)
            except (RecursionError, TypeError, ValueError):
                continue  # More than plain data.
    return settings


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
