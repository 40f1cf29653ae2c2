"""Files that are written in one step: a kill or a full disk leaves the old one or the new one."""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mmscale.untrusted import check_no_link

# What file systems say that cannot sync a folder, or do not let us.
_UNSYNCED = (errno.EACCES, errno.EINVAL, errno.ENOTSUP)


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


@contextmanager
def atomic_write(path: str | Path, shared: bool = False) -> Iterator[IO[bytes]]:
    """Opens a new file that takes its name once it is whole and synced to the disk.

    What a kill leaves is a hidden temporary file, which the next attempt removes.

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
    name = uuid.uuid4().hex if shared else path.name
    temporary = path.with_name(f'.{name}.partial')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.unlink(missing_ok=True)
            # Exclusive: nothing that is put there meanwhile is followed or overwritten.
            with temporary.open('xb') as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        # Without the name of the temporary file.
        raise OSError(error.errno, f'cannot write {path}: {error.strerror}') from error


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
