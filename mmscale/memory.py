"""Whether what is asked for fits into memory: said in one line, before the system kills us."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from mmscale.errors import UsageError

# What a container or a job may take on Linux; `max` where there is no limit.
_GROUP_LIMIT = Path('/sys/fs/cgroup/memory.max')
_SYSTEM = Path('/proc/meminfo')


def available_memory() -> int | None:
    """Bytes that may still be taken without swapping, as far as the system tells; or None."""
    found = []
    with suppress(OSError, ValueError, StopIteration):
        lines = _SYSTEM.read_text(encoding='ascii').splitlines()
        line = next(line for line in lines if line.startswith('MemAvailable:'))
        found.append(int(line.split()[1]) << 10)
    with suppress(OSError, ValueError):
        found.append(int(_GROUP_LIMIT.read_text(encoding='ascii')))
    return min(found, default=None)


def check_memory(what: str, count: int) -> None:
    """Refuses what does not fit into memory.

    Args:
        what: What it is, for the error.
        count: Bytes that it takes at least.

    Raises:
        UsageError: It takes more than there is.
    """
    available = available_memory()
    if available is not None and count > available:
        raise UsageError(
            f'{what}: takes {count / 2**30:,.1f} GiB of memory, of which '
            f'{available / 2**30:,.1f} GiB are available'
        )
