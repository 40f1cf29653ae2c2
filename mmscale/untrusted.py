"""Files that somebody else may have prepared: read as data, written without following links."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from mmscale.errors import UsageError

# How an environment variable says no, to torch and to us.
NO = ('0', 'n', 'no', 'false')


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
