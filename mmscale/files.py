"""Files that are written in one step: a kill or a full disk leaves the old one or the new one."""

from __future__ import annotations

import errno
import glob
import json
import os
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TextIO

from mmscale.untrusted import UntrustedFileError, check_no_link

# What file systems say that cannot sync at all. A disk that is full or broken says something else.
_CANNOT_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)
# What they say of folders besides, or where a folder may be written to but not read.
_UNSYNCED = (
    *_CANNOT_SYNC,
    *(errno.EACCES, errno.EBADF, errno.EISDIR, errno.EPERM, errno.EROFS),
)

# After so long nobody writes a temporary file any more that several processes may have written.
_LEFT_OVER_SECONDS = 3600


def sync_file(descriptor: int) -> None:
    """Syncs what was written to a file, where its file system can.

    Elsewhere a kill loses nothing, as before, but a machine that loses its power may.

    Raises:
        OSError: The disk is full or broken.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise


def sync_folder(folder: Path) -> None:
    """Syncs the names in a folder, where its file system can and lets us."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _UNSYNCED:
            raise


def being_written(folder: Path, name: str) -> list[Path]:
    """Temporary files of :func:`atomic_write` with `shared`, without those that kills have left.

    Those are removed: such as nobody has written to for an hour.

    Args:
        folder: Where the files lie.
        name: Pattern of the names that they would take.
    """
    paths = []
    for path in folder.glob(f'.{name}.{"[0-9a-f]" * 32}.partial'):
        # Another process may have come first.
        with suppress(OSError):
            if time.time() - path.lstat().st_mtime > _LEFT_OVER_SECONDS:
                path.unlink()
            else:
                paths.append(path)
    return paths


@contextmanager
def atomic_write(path: str | Path, shared: bool = False) -> Iterator[IO[bytes]]:
    """Opens a new file that takes its name once it is whole and synced to the disk.

    What a kill leaves is a hidden temporary file, which the next attempt removes; if several
    processes may write, an attempt an hour later.

    Args:
        path: The file; its folder is made if need be.
        shared: Whether several processes may write it at the same time: the last one wins.

    Yields:
        The open file, for bytes.

    Raises:
        UntrustedFileError: A symbolic link is there.
        OSError: The disk is full or the folder cannot be written; the old file is unchanged.

    Example:
        >>> with atomic_write('scores.json') as file:  # doctest: +SKIP
        ...     file.write(b'{}')
    """
    path = check_no_link(path)
    name = f'{path.name}.{uuid.uuid4().hex}' if shared else path.name
    temporary = path.with_name(f'.{name}.partial')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if shared:
            being_written(path.parent, glob.escape(path.name))
        try:
            temporary.unlink(missing_ok=True)
            # Exclusive: nothing that is put there meanwhile is followed or overwritten.
            with temporary.open('xb') as file:
                yield file
                file.flush()
                sync_file(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        # Without the name of the temporary file.
        raise OSError(error.errno, f'cannot write {path}: {error.strerror}') from error


def check_own_file(path: str | Path, descriptor: int) -> None:
    """Checks that what is open is a file of one name: writing changes no other.

    Raises:
        UntrustedFileError: It is no regular file, or has other names (hard links).
    """
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise UntrustedFileError(f'{path} is not a regular file')
    if status.st_nlink > 1:
        raise UntrustedFileError(
            f'{path} has {status.st_nlink} names (hard links), and the file of all would be '
            'written to: copy it'
        )


def open_to_append(path: str | Path, anew: bool = False) -> TextIO:
    """Opens a text file, which is made if need be, to write behind what it has.

    Args:
        path: The file.
        anew: Whether it is emptied first.

    Raises:
        UntrustedFileError: A link is there, symbolic or hard, or no regular file.
        OSError: It cannot be opened.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(check_no_link(path), flags, 0o666)
    try:
        check_own_file(path, descriptor)
    except UntrustedFileError:
        os.close(descriptor)
        raise
    if anew:
        os.ftruncate(descriptor, 0)
    return os.fdopen(descriptor, 'a', encoding='utf-8')


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file in one step, see :func:`atomic_write`.

    Raises:
        UntrustedFileError: A symbolic link is there.
        OSError: It cannot be written; the old file is unchanged.
    """
    with atomic_write(path) as file:
        file.write(text.encode())


def write_json(path: str | Path, data: object) -> None:
    """Writes a JSON file in one step, see :func:`atomic_write`.

    Raises:
        UntrustedFileError: A symbolic link is there.
        OSError: It cannot be written; the old file is unchanged.
    """
    write_text(path, json.dumps(data, indent=1) + '\n')
