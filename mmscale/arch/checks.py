"""Checks of data that users and files give; what they raise is one short line."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from mmscale.errors import UsageError
from mmscale.shown import shortly

_MOST_KEYS = 5


def _text(key: object) -> str:
    # Python refuses to write the digits of a large integer.
    return key if isinstance(key, str) else shortly(key)


def _listed(keys: Collection[object]) -> str:
    """Names of keys, of which a damaged file may have many, long and with line breaks."""
    first = list(keys)[:_MOST_KEYS]
    names = [key if _text(key).isidentifier() else shortly(key) for key in first]
    shown = ', '.join(f'{name!s:.40}' for name in names)
    return f'{shown} and {len(keys) - _MOST_KEYS} more' if len(keys) > _MOST_KEYS else shown


def check_keys(
    owner: str, data: object, allowed: Iterable[str] | None, required: Iterable[str] = ()
) -> dict[str, Any]:
    """The data as a dict, which has all the keys that are required and none but those allowed.

    Args:
        owner: What the data is, for the error.
        data: Plain data, of any kind.
        allowed: Keys that may be there besides; None for any.
        required: Keys that must be there.

    Raises:
        ValueError: It is no mapping, or a key is unknown or missing.
    """
    if not isinstance(data, Mapping):
        raise UsageError(
            f'{owner}: expected an object, got {type(data).__name__} {shortly(data):.40}'
        )
    required = tuple(required)
    if allowed is not None:
        known = dict.fromkeys((*required, *allowed))
        unknown = sorted((key for key in data if key not in known), key=_text)
        if unknown:
            raise UsageError(
                f'{owner}: unknown key {_listed(unknown)}; allowed are {", ".join(known)}'
            )
    missing = [key for key in required if key not in data]
    if missing:
        raise UsageError(f'{owner}: missing key {", ".join(missing)}')
    return dict(data)


def check_schema(owner: str, value: object, supported: int) -> None:
    """Refuses the version of a format that is not the one supported.

    Raises:
        UsageError: It is another, or no integer.
    """
    if type(value) is not int or value != supported:
        raise UsageError(
            f'{owner}: schema={shortly(value):.60} is not supported, expected {supported}'
        )


def choice(name: str, value: object, allowed: Iterable[str]) -> str:
    """The value called `name`, which is one of those allowed.

    Raises:
        UsageError: It is another, or not even a string.

    Example:
        >>> choice('metric', 'flops', ('flops', 'params'))
        'flops'
    """
    if not isinstance(value, str) or value not in allowed:
        raise UsageError(f'{name}={shortly(value):.60} is not one of {", ".join(allowed)}')
    return value


def integer(name: str, value: object, least: int = 1, most: int | None = None) -> int:
    """The value called `name`, which is an integer in a range; a boolean is none.

    Raises:
        UsageError: It is something else, or out of the range.

    Example:
        >>> integer('batch', 8)
        8
    """
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        allowed = f'of {least} or more' if most is None else f'in {least}..{most}'
        raise UsageError(f'{name}={shortly(value):.60} must be an integer {allowed}')
    return value


def number(
    name: str,
    value: object,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> float:
    """The value called `name`, which is a finite number in a range; a boolean is none.

    Args:
        name: What the value is, for the error.
        value: The value; it comes back as it is.
        least: Smallest that is allowed.
        most: Largest that is allowed.
        above: What the value must be larger than.
        below: What the value must be smaller than.

    Raises:
        UsageError: It is something else, or out of the range.

    Example:
        >>> number('tolerance', 0.01, above=0, below=1)
        0.01
    """
    if (
        not is_number(value)
        or (least is not None and value < least)
        or (most is not None and value > most)
        or (above is not None and value <= above)
        or (below is not None and value >= below)
    ):
        limits = {'of {} or more': least, 'above {}': above, 'up to {}': most, 'below {}': below}
        if least is not None and most is not None:
            limits = {f'in {least}..{{}}': most}
        given = [text.format(limit) for text, limit in limits.items() if limit is not None]
        allowed = ' and '.join(given)
        raise UsageError(f'{name}={shortly(value):.60} must be a number {allowed}'.rstrip())
    return value


def is_number(value: object) -> bool:
    """Whether a value is a finite number that fits a float, and not a boolean."""
    # Comparisons are exact for integers of any size, and false for NaN.
    return (
        not isinstance(value, bool)
        and isinstance(value, (int, float))
        and (-1.7e308 < value < 1.7e308)
    )
