"""Checks of data that users and files give; what they raise is one short line."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from mmscale.errors import UsageError

_MOST_KEYS = 5


def _listed(keys: Collection[object]) -> str:
    """Names of keys, of which a damaged file may have many, long and with line breaks."""
    names = [key if str(key).isidentifier() else repr(key) for key in keys]
    shown = ', '.join(f'{name!s:.40}' for name in names[:_MOST_KEYS])
    return f'{shown} and {len(names) - _MOST_KEYS} more' if len(names) > _MOST_KEYS else shown


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
        raise UsageError(f'{owner}: expected an object, got {type(data).__name__} {data!r:.40}')
    required = tuple(required)
    if allowed is not None:
        known = dict.fromkeys((*required, *allowed))
        unknown = sorted((key for key in data if key not in known), key=str)
        if unknown:
            raise UsageError(
                f'{owner}: unknown key {_listed(unknown)}; allowed are {", ".join(known)}'
            )
    missing = [key for key in required if key not in data]
    if missing:
        raise UsageError(f'{owner}: missing key {", ".join(missing)}')
    return dict(data)


def check_choice(owner: str, key: str, value: object, allowed: Iterable[str]) -> str:
    """The value, which is one of those allowed.

    Raises:
        ValueError: It is another, or not even a string.
    """
    if not isinstance(value, str) or value not in allowed:
        raise UsageError(f'{owner}: {key}={value!r:.60} is not one of {", ".join(allowed)}')
    return value


def is_number(value: object) -> bool:
    """Whether a value is a finite number that fits a float, and not a boolean."""
    # Comparisons are exact for integers of any size, and false for NaN.
    return (
        not isinstance(value, bool)
        and isinstance(value, (int, float))
        and (-1.7e308 < value < 1.7e308)
    )
