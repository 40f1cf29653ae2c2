"""JSON files that the tools read: data of bounded size."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from mmscale.errors import UsageError
from mmscale.untrusted import read_text

# The result of a search with a front of hundreds of networks takes a few MB.
MOST_JSON_BYTES = 2**26
# Python takes up to 240 bytes for each; indented as here, files of that size have fewer.
_MOST_VALUES = 2**21


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise UsageError(f'the key {twice!r:.40} comes twice')
    return data


def read_json(path: str | Path, most_bytes: int = MOST_JSON_BYTES) -> Any:
    """Reads what a JSON file holds.

    Args:
        path: The file.
        most_bytes: A larger file is refused before it is read.

    Raises:
        ValueError: The file is too large, holds too many values, or is not JSON or no regular
            file, or a key comes twice in one object.
        FileNotFoundError: There is no such file.
    """
    return parse_json(f'{path}', read_text(path, most_bytes))


def parse_json(owner: str, text: str) -> Any:
    """What a JSON text holds, as of a file.

    Args:
        owner: Where it is from, for the error.
        text: The text.

    Raises:
        ValueError: The text is too long, holds too many values, or is not JSON, or a key comes
            twice in one object.
    """
    if len(text) > MOST_JSON_BYTES:
        raise UsageError(f'{owner}: {len(text):,} characters, more than {MOST_JSON_BYTES:,}')
    if sum(map(text.count, ',[{')) > _MOST_VALUES:
        raise UsageError(f'{owner} holds more than {_MOST_VALUES:,} values')
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise UsageError(f'{owner}: not a JSON file ({error})') from None
