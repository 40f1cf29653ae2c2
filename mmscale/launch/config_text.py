"""Configs as text: settings are written as literals, and read back without executing anything.

A config is Python in which MMEngine replaces ``{{ ... }}`` before it is parsed, so that a path or
a name with quotes, line breaks or braces in it is code, unless it is written as here.
"""

from __future__ import annotations

import ast
import keyword
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from mmscale.errors import UsageError, one_line

if TYPE_CHECKING:
    from mmengine.config import Config

_WIDTH = 99
# Of a config that is read as data; Python's parser takes up to 900 bytes for each.
_MOST_CHARACTERS = 2**19
# No setting is larger, and Python refuses to write numbers of thousands of digits.
_LARGEST = 2**64
# What MMEngine fills in as text. It makes slashes of backslashes, and the quotes around it here
# end at three quotes alone.
_FOLDER = '{{ fileDirname }}'
_NOT_FILLED_IN = {'\\': 'a backslash', '"""': 'three quotes', '{{': 'two braces', '\r': 'a return'}


class BesideConfig(str):
    """A file in the folder of the config that names it, wherever that folder is moved.

    Args:
        name: The file, relative to the folder.

    Example:
        >>> BesideConfig('weights.pth')
        '{{ fileDirname }}/weights.pth'
    """

    def __new__(cls, name: str) -> BesideConfig:  # noqa: D102
        return super().__new__(cls, f'{_FOLDER}/{name}')


def check_config_folder(folder: str | Path) -> None:
    """Refuses folders whose configs MMEngine could not read, as :class:`BesideConfig` needs it.

    Args:
        folder: Where a config will lie.

    Raises:
        UsageError: Its path has characters that MMEngine does not fill in as they are.
    """
    path = os.path.abspath(folder)
    found = [what for part, what in _NOT_FILLED_IN.items() if part in path]
    if path != path.encode(errors='replace').decode():
        found.append('a byte that is no UTF-8')
    if found:
        raise UsageError(
            f'{path!r}: MMEngine cannot read configs that name files beside them in a folder with '
            f'{found[0]} in its path; take another'
        )


def base_of(config: str | Path, folder: str | Path) -> str:
    """What a config in a folder has to call another one as its ``_base_``.

    Args:
        config: A file, or ``PACKAGE::NAME``.
        folder: Where the config will lie that inherits.

    Raises:
        UsageError: MMEngine could not find it.
    """
    if not os.path.exists(config) and '::' in str(config):
        return str(config)
    paths = [os.path.abspath(path) for path in (config, folder)]
    real = [os.path.realpath(path) for path in paths]
    # MMEngine goes up by the text of a path, and through a symbolic link that leads elsewhere.
    path = os.path.relpath(*real) if paths == real else real[0]
    if '::' in path:
        raise UsageError(
            f'{config}: MMEngine takes a path with :: for the config of a package; move it, or '
            'write to a folder beside it'
        )
    return path


def child_of(config: Config, folder: str | Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a config that changes another one.

    Args:
        config: Read from a file. That is inherited from, if it is text; a pure-Python config,
            which MMEngine lets no text inherit from, is taken over as a whole.
        folder: Where the config will lie.
        changes: What is merged into the other, as MMEngine does it.

    Raises:
        UsageError: MMEngine could not find the other config.
    """
    if not getattr(config, '_imported_names', None):
        return dict(_base_=base_of(config.filename, folder), **changes)
    from mmengine.config import Config

    whole = Config(config.to_dict())
    whole.merge_from_dict(dict(changes))
    return whole.to_dict()


def settings_text(settings: Mapping[str, Any], comment: str = '') -> str:
    """The text of a config, which MMEngine reads as these very settings.

    Args:
        settings: Plain data: numbers, texts, None, lists, tuples and dicts. Paths become text, and
            classes and functions the names that MMEngine finds them by.
        comment: Lines for the top.

    Raises:
        UsageError: There is something else in the settings; the message names its key.

    Example:
        >>> print(settings_text(dict(model=dict(type='ResNet', depth=50), data_root="o'neil")))
        model = dict(type='ResNet', depth=50)
        data_root = "o'neil"
        <BLANKLINE>
    """
    lines = [f'# {line}' for line in comment.splitlines()]
    for key, value in settings.items():
        if not _is_name(key):
            raise UsageError(f'{key!r:.60} is no name of a setting of a config')
        lines += _laid_out(str(key), f'{key} = ', value, '', 0)
    return '\n'.join(lines) + '\n'


def _is_name(key: object) -> bool:
    return isinstance(key, str) and key.isidentifier() and not keyword.iskeyword(key)


def _laid_out(owner: str, before: str, value: Any, after: str, indent: int) -> list[str]:
    """Lines that write a value between two texts: one, or one for every part of it."""
    line = f'{" " * indent}{before}{_literal(owner, value)}{after}'
    if len(line) <= _WIDTH or not isinstance(value, (Mapping, list, tuple)) or not value:
        return [line]
    opening, parts, closing = _parts(owner, value)
    lines = [f'{" " * indent}{before}{opening}']
    for name, key, part in parts:
        lines += _laid_out(name, key, part, ',', indent + 4)
    return [*lines, f'{" " * indent}{closing}{after}']


def _parts(owner: str, value: Mapping | list | tuple) -> tuple[str, list, str]:
    """Opening bracket, parts (name for messages, text before it, value) and closing bracket."""
    if isinstance(value, Mapping):
        named = all(map(_is_name, value))
        opening, closing = ('dict(', ')') if named else ('{', '}')
        keys = {key: f'{key}=' if named else f'{_literal(owner, key)}: ' for key in value}
        parts = [(f'{owner}.{key}', keys[key], part) for key, part in value.items()]
        return opening, parts, closing
    opening, closing = ('[', ']') if isinstance(value, list) else ('(', ')')
    return opening, [(f'{owner}[{i}]', '', part) for i, part in enumerate(value)], closing


def _literal(owner: str, value: Any) -> str:
    """A value as Python that MMEngine leaves as it is."""
    if isinstance(value, BesideConfig):
        inner = repr(str(value).removeprefix(_FOLDER))[1:-1].replace('"', r'\"')
        return f'"""{_FOLDER}{_unfilled(inner)}"""'
    if isinstance(value, (str, PurePath)):
        return _unfilled(repr(str(value)))
    if value is None or isinstance(value, (bool, bytes)):
        return repr(value)
    if isinstance(value, int):
        return repr(int(value))
    if isinstance(value, float):
        return repr(float(value)) if math.isfinite(value) else f"float('{float(value)}')"
    if isinstance(value, (Mapping, list, tuple)):
        opening, parts, closing = _parts(owner, value)
        inner = ', '.join(f'{key}{_literal(name, part)}' for name, key, part in parts)
        lone = ',' if isinstance(value, tuple) and len(value) == 1 else ''
        return f'{opening}{inner}{lone}{closing}'
    if type(value).__module__ == 'mmengine.config.lazy':  # of a class that is not imported yet
        return repr(f'{value.module}.{value}')
    if callable(value) and '<' not in getattr(value, '__qualname__', '<'):
        return repr(f'{value.__module__}.{value.__qualname__}')
    raise UsageError(f'{owner}: {value!r:.60} ({type(value).__name__}) is no setting of a config')


def _unfilled(literal: str) -> str:
    """A literal in which MMEngine finds nothing to fill in."""
    return literal.replace('{{', r'{\x7b')


def read_config_text(text: str) -> dict[str, Any]:
    """Those settings of a dumped config that are plain data; the text may come from anybody.

    Raises:
        UsageError: The text is not Python, or longer than any config.
    """
    if len(text) > _MOST_CHARACTERS:
        raise UsageError(
            f'{len(text):,} characters are more than the {_MOST_CHARACTERS:,} of a config'
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of what is odd in the text
            statements = ast.parse(text).body
    except (MemoryError, RecursionError, SyntaxError, ValueError) as error:
        raise UsageError(f'not Python ({one_line(error):.100})') from None
    settings = {}
    for statement in statements:
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
    elif isinstance(node, ast.Set):
        return {_value(item) for item in node.elts}
    value = ast.literal_eval(node)
    if isinstance(value, int) and abs(value) >= _LARGEST:
        raise ValueError('an integer whose digits could not be shown')
    return value
