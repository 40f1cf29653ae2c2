"""Files that somebody else may have prepared: read as data, written without following links."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from mmscale.errors import UsageError

# How an environment variable says no, to torch and to us.
NO = ('0', 'n', 'no', 'false')


# Of a text that is read whole, as a config or a line of a log; that of a large space has 1 MB.
MOST_TEXT_BYTES = 2**25

# As deep as there are files with known names: <time>/vis_data/scalars.json.
_DEPTH = 3


class UntrustedFileError(UsageError):
    """A file is not what it has to be; nothing of it was used."""


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a file to read it, and nothing else: a pipe would wait for a writer for ever.

    Args:
        path: The file; links to files are followed.

    Raises:
        FileNotFoundError: There is no such file.
        UntrustedFileError: It is a pipe, a device, a socket or a folder.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UntrustedFileError(f'{path} is not a regular file')
    return os.fdopen(descriptor, 'rb')


def read_bytes(path: str | os.PathLike[str], most_bytes: int = MOST_TEXT_BYTES) -> bytes:
    """Reads a whole file of bounded size.

    Args:
        path: The file; links to files are followed.
        most_bytes: A larger file is refused before it is read.

    Raises:
        FileNotFoundError: There is no such file.
        UntrustedFileError: It is larger, or no regular file.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = b'' if size > most_bytes else file.read(most_bytes + 1)
    size = max(size, len(content))
    if size > most_bytes:
        raise UntrustedFileError(
            f'{path} has {size:,} bytes, more than the {most_bytes:,} that such a file may have'
        )
    return content


def read_text(path: str | os.PathLike[str], most_bytes: int = MOST_TEXT_BYTES) -> str:
    """Reads a whole text of bounded size, see :func:`read_bytes`.

    Raises:
        FileNotFoundError: There is no such file.
        UntrustedFileError: It is larger, no regular file, or not UTF-8.
    """
    try:
        return read_bytes(path, most_bytes).decode()
    except UnicodeDecodeError as error:
        raise UntrustedFileError(f'{path}: no text in UTF-8 ({error.reason})') from None


def check_no_link(path: str | os.PathLike[str]) -> Path:
    """The path, if it is no symbolic link that writing would follow.

    Raises:
        UntrustedFileError: It is a link.
    """
    path = Path(path)
    if path.is_symlink():
        raise UntrustedFileError(
            f'{path} is a symbolic link to {os.readlink(path)}, and would be written to through '
            'it: remove it'
        )
    return path


def check_work_dir(folder: str | os.PathLike[str]) -> None:
    """Checks a folder that may have been downloaded, before it is read or written to.

    Links inside of it may lead to its own files only: others would be written over through them.

    Raises:
        UntrustedFileError: A link leads out of it, or there is a pipe, a device or a socket.
    """
    whole = Path(os.path.realpath(folder))
    folders = [whole]
    for _ in range(_DEPTH):
        inner = []
        for place in folders:
            for path in place.iterdir() if place.is_dir() else ():
                if path.is_symlink():
                    # Unlike Path.resolve, it takes a link that leads to itself.
                    if not Path(os.path.realpath(path)).is_relative_to(whole):
                        raise UntrustedFileError(
                            f'{path} is a symbolic link out of {folder}, and what it leads to '
                            'would be written over: remove it'
                        )
                elif path.is_dir():
                    inner.append(path)
                elif not path.is_file():
                    raise UntrustedFileError(f'{path} is not a regular file')
        folders = inner
