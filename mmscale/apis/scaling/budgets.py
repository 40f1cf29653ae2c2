"""Budgets as users write them: flops=4e9, flops=4G or flops=4x."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mmscale.arch.checks import choice, number
from mmscale.cost import METRICS
from mmscale.errors import UsageError

_UNITS = {'k': 1e3, 'm': 1e6, 'g': 1e9}
_EXPECTED = 'a number, as 4e9, with K, M or G, as 4G, or a multiple of the base, as 4x'


@dataclass(frozen=True)
class Budget:
    """What a network may cost.

    Attributes:
        metric: What the budget is about.
        value: The cost, or the multiple of the base model's.
        is_multiple: Whether it is the latter.
    """

    metric: str
    value: float
    is_multiple: bool = False


def read_budget(
    budget: float | str | Mapping[str, float | str], metric: str | None = None
) -> Budget:
    """Reads a budget.

    Args:
        budget: A number; a text, ``4e9``, ``4G`` (K, M and G for thousands, millions and
            billions), ``4x`` (a multiple of the base model's cost), with the metric before it
            (``flops=4G``) or not; or a mapping from the metric, ``dict(flops=4e9)``.
        metric: The metric, if that is known; by default ``flops``.

    Raises:
        UsageError: It is malformed, not above 0, or of another metric.

    Example:
        >>> read_budget('params=25M')
        Budget(metric='params', value=25000000.0, is_multiple=False)
    """
    owner = f'budget={budget!r:.60}'
    if isinstance(budget, Mapping):
        if len(budget) != 1:
            raise UsageError(f'{owner} must have one metric of {", ".join(METRICS)}')
        ((own, budget),) = budget.items()
    elif isinstance(budget, str) and '=' in budget:
        own, _, budget = budget.partition('=')
        own = own.strip()
    else:
        own = metric or 'flops'
    choice(f'{owner}: metric', own, METRICS)
    if metric not in (None, own):
        raise UsageError(f'{owner} is of another metric than metric={metric}')
    if not isinstance(budget, str):
        return Budget(own, number('budget', budget, above=0))
    unit = budget.strip()[-1:].lower()
    unit = unit if unit in _UNITS or unit == 'x' else ''
    try:
        value = float(budget.strip()[: -1 if unit else None])
    except ValueError:
        raise UsageError(f'{owner}: {budget!r:.40} is not {_EXPECTED}') from None
    return Budget(own, number('budget', value, above=0) * _UNITS.get(unit, 1.0), unit == 'x')
