"""Nested settings, such as configs and fingerprints, and how they differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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
