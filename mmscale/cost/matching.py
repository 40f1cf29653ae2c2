"""Finds the factor at which a scaling rule truly meets a budget."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields

import numpy as np

from mmscale.arch import Arch, Rounding, Scaling, apply_scaling, width_rule
from mmscale.cost.count import Cost, count

# Factors tried around the wanted one, evenly spaced in their logarithm.
_FACTORS = 801
_RANGE = 4.0


def match_scaling(
    base: Arch,
    scaling_of: Callable[[float], Scaling],
    factor: float,
    rule: str = 'search',
    metric: str = 'flops',
    rounding: Rounding = Rounding(),  # noqa: B008 - immutable
) -> Scaling:
    """The Scaling of a rule whose true cost is nearest to a multiple of the base's.

    Rounding makes a rule miss: twice the depth of one block out of three is not a third more.

    Args:
        base: The base model.
        scaling_of: The rule, from a factor to a Scaling.
        factor: Wanted multiple of the base model's cost, 1 or more.
        rule: Name of the width rule.
        metric: ``flops``, ``params`` or ``acts``.
        rounding: How scaled numbers become integers.

    Returns:
        Of the factors tried the one whose cost is nearest, the smallest of equals.

    Raises:
        ValueError: A setting is not allowed.
    """
    metrics = [field.name for field in fields(Cost)]
    if metric not in metrics:
        raise ValueError(f'metric={metric!r} is not one of {", ".join(metrics)}')
    if isinstance(factor, bool) or not isinstance(factor, (int, float)):
        raise ValueError(f'factor={factor!r} must be a number of 1 or more')
    if not 1 <= factor < math.inf:
        raise ValueError(f'factor={factor} must be a number of 1 or more')
    width_rule(rule)
    target = factor * getattr(count(base), metric)
    if factor == 1:
        return Scaling()

    def distance(candidate: Scaling) -> float:
        scaled = apply_scaling(base, candidate, rule, rounding)
        return abs(getattr(count(scaled), metric) - target)

    factors = factor * np.geomspace(1 / _RANGE, _RANGE, _FACTORS)
    return min((scaling_of(float(f)) for f in factors if f >= 1), key=distance)
