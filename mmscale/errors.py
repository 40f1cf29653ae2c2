"""The errors of mmscale: one family, whose messages are all that a user needs to see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class MMScaleError(Exception):
    """What everything that mmscale raises on purpose is."""


class UsageError(MMScaleError, ValueError):
    """A value, a file or a setting that a user gave is not allowed.

    The message names it, its value and what is allowed.

    Example:
        >>> import mmscale
        >>> try:
        ...     mmscale.get_arch('scalenet-s9')
        ... except mmscale.MMScaleError as error:
        ...     print('refused')
        refused
    """


# What a mistake in somebody's config, file or network raises, in Python and in the libraries that
# it goes through.
FOREIGN_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,  # what Python's parser raises of brackets in brackets in ...
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


def one_line(error: BaseException) -> str:
    """The text of an error without line breaks, as part of a message.

    Our own errors and those of the operating system say it all; what other libraries raise needs
    its type.
    """
    text = ' '.join(str(error).split())
    return (
        text if isinstance(error, (MMScaleError, OSError)) else f'{type(error).__name__}: {text}'
    )


def flat(value: Any, prefix: str = '') -> dict[str, Any]:
    """The leaves of nested settings, by dotted key; empty mappings and lists are leaves."""
    if not isinstance(value, (Mapping, list, tuple)) or not value:
        return {prefix: value}
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    leaves = {}
    for key, part in items:
        leaves |= flat(part, f'{prefix}.{key}' if prefix else str(key))
    return leaves


def differences(old: Mapping[str, Any], new: Mapping[str, Any], where: str) -> list[str]:
    """How settings differ, a line per key: ``lr: 0.2 before, 0.3 now``.

    Args:
        old: Settings by key, see :func:`flat`.
        new: The present ones.
        where: What the old ones are called, as ``before``.
    """
    absent = object()

    def shown(value: object) -> str:
        return 'absent' if value is absent else f'{value!r:.60}'

    pairs = {key: (old.get(key, absent), new.get(key, absent)) for key in sorted({*old, *new})}
    return [
        f'{key}: {shown(before)} {where}, {shown(now)} now'
        for key, (before, now) in pairs.items()
        if before != now
    ]
