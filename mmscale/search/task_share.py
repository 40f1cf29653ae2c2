"""How much of what a search by gradient has learned came from its task."""

from __future__ import annotations

from collections.abc import Collection

# Below it a structure is not believed to have been learned from the data.
LEAST_TASK_SHARE = 0.1


def task_share(shares: Collection[float]) -> float:
    """The mean of the task's shares of all groups, which all take equal steps; 1 of none."""
    return sum(shares) / len(shares) if shares else 1.0


def task_warning(shares: Collection[float]) -> str | None:
    """What is to be said where the task decided too little of a structure; None otherwise.

    Args:
        shares: The task's share of what pulled at each group's ratio, 0 to 1.

    Example:
        >>> task_warning([0.4, 0.6]) is None
        True
    """
    mean = task_share(shares)
    if mean >= LEAST_TASK_SHARE:
        return None
    return (
        f'the task decided {mean:.1%} of what was learned, the cost the rest: the structure is '
        'about what it would be without any data. Start from trained weights '
        "(model.pipeline='p' or 'p-'), or train them for longer before the ratios move "
        '(warmup of the DMSHook)'
    )
