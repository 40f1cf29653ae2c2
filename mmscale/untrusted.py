"""Files that somebody else may have prepared: read as data, written without following links."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from mmscale.errors import UsageError

# How an environment variable says no, to torch and to us.
NO = ('0', 'n', 'no', 'false')


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
    whole = Path(folder).resolve()
    folders = [whole]
    for _ in range(_DEPTH):
        inner = []
        for place in folders:
            for path in place.iterdir() if place.is_dir() else ():
                if path.is_symlink():
                    if not path.resolve().is_relative_to(whole):
                        raise UntrustedFileError(
                            f'{path} is a symbolic link out of {folder}, and what it leads to '
                            'would be written over: remove it'
                        )
                elif path.is_dir():
                    inner.append(path)
                elif not path.is_file():
                    raise UntrustedFileError(f'{path} is not a regular file')
        folders = inner
