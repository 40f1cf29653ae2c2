"""The errors of mmscale: one family, whose messages are all that a user needs to see."""

from __future__ import annotations

from itertools import dropwhile

from mmscale.shown import visible

_TRACEBACK = 'Traceback (most recent call last):\n'


def _without_traceback(text: str) -> str:
    """What was raised in a process that loads data, of which torch makes text with a traceback."""
    if not text.startswith('Caught ') or _TRACEBACK not in text:
        return text
    lines = text.rpartition(_TRACEBACK)[2].splitlines()
    message = '\n'.join(dropwhile(lambda line: line.startswith('  '), lines))
    return message.partition(': ')[2]


class MMScaleError(Exception):
    """What everything that mmscale raises on purpose is.

    Its text is safe to print: it may quote a file that somebody else has made.
    """

    def __str__(self) -> str:
        return visible(_without_traceback(super().__str__()))


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
    """The text of an error as part of a message: no line breaks, and safe to print.

    Our own errors and those of the operating system say it all; what other libraries raise needs
    its type.
    """
    # Ours would have their line breaks written out already.
    text = Exception.__str__(error) if isinstance(error, MMScaleError) else str(error)
    text = visible(' '.join(_without_traceback(text).split()))
    return (
        text if isinstance(error, (MMScaleError, OSError)) else f'{type(error).__name__}: {text}'
    )
