"""Text that may come from anybody, as it is shown: on a terminal, in Markdown, in comments."""

from __future__ import annotations

import re
import reprlib

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


class _Short(reprlib.Repr):
    """Python's own shortening, without what writes a whole value first."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxother = self.maxstring = 60

    def repr_int(self, value: int, level: int) -> str:
        # Python refuses to write the digits of large ones.
        bits = value.bit_length()
        return repr(value) if bits < 256 else f'an integer of {bits} bits'

    def repr_instance(self, value: object, level: int) -> str:
        if isinstance(value, (int, float, complex, type(None))):
            return repr(value)
        shape = getattr(value, 'shape', None)
        of = f' of shape {tuple(shape)}' if isinstance(shape, tuple) else ''
        return f'{type(value).__name__}{of}'


def shortly(value: object) -> str:
    """A value of a file as part of a message: short, and written without taking long.

    A few bytes of a pickle may stand for a value whose text would fill the memory.

    Example:
        >>> shortly([1, 2]), shortly(10**5000)
        ('[1, 2]', 'an integer of 16610 bits')
    """
    return f'{visible(_Short().repr(value)):.80}'


def without_markup(text: object) -> str:
    """A text as part of a comment or of a cell in Markdown: one line, no markup.

    Example:
        >>> without_markup('a | <b>')
        'a _ _b_'
    """
    words = ' '.join(str(text).split())
    return _MARKUP.sub('_', ''.join(one if one.isprintable() else '_' for one in words))
