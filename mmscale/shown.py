"""Text that may come from anybody, as it is shown: on a terminal, in Markdown, in comments."""

from __future__ import annotations

import re

# What Markdown, HTML and MMEngine's templates take for markup.
_MARKUP = re.compile(r'[`|<>{}\[\]\\]')


def _escaped(character: str) -> str:
    # Lone surrogates are what Python makes of a path that is not UTF-8.
    return character.encode('unicode_escape').decode()


def visible(text: object) -> str:
    r"""A text in which nothing acts on a terminal: control characters are written out.

    So are line breaks, marks that change the direction of writing, and bytes of a path that are
    not UTF-8, which could not be printed at all.

    Args:
        text: A text, or what is to be shown as one.

    Example:
        >>> visible('a\x1b[2Jb')
        'a\\x1b[2Jb'
    """
    text = str(text)
    if text.isprintable():
        return text
    return ''.join(one if one.isprintable() else _escaped(one) for one in text)


def visible_lines(text: object) -> str:
    r"""As :func:`visible`, of a text that may have several lines and tabs in them.

    Example:
        >>> visible_lines('a\n\x1b[2Jb')
        'a\n\\x1b[2Jb'
    """
    parts = re.split(r'([\n\t])', str(text))
    return ''.join(part if part in '\n\t' else visible(part) for part in parts)


def without_markup(text: object) -> str:
    """A text as part of a comment or of a cell in Markdown: one line, no markup.

    Example:
        >>> without_markup('a | <b>')
        'a _ _b_'
    """
    words = ' '.join(str(text).split())
    return _MARKUP.sub('_', ''.join(one if one.isprintable() else '_' for one in words))
