"""The input size of the network that a process builds, for pipelines that nobody tells theirs."""

from __future__ import annotations

_resolution: int | None = None


def note_resolution(resolution: int) -> None:
    """Says for which resolution, in pixels, the network is that was built last."""
    global _resolution
    _resolution = resolution


def noted_resolution() -> int | None:
    """The resolution of the network that was built last in this process, if any was."""
    return _resolution
