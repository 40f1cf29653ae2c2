"""From a scaling strategy found at a few scaling stages to a rule for any factor."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mmscale.arch.checks import number
from mmscale.arch.rounding import Scaling
from mmscale.arch.rules import ScalingRule
from mmscale.errors import UsageError


def fit_rule(
    strategy: Sequence[Scaling], cost_ratios: Sequence[float], name: str = 'fitted'
) -> ScalingRule:
    """Fits a power rule to a strategy: log-multipliers against the log of the cost.

    Per multiplier m the exponent e of m = ratio^e is fitted by least squares of log2(m) against
    log2(ratio). The lines go through the origin, because the base model is (1, 1, 1) at a ratio
    of 1 by definition. The ratios are the true ones of the scaled networks, not the budgets,
    which rounding misses.

    Args:
        strategy: One Scaling per scaling stage; those of ratio 1 say nothing and may be left out.
        cost_ratios: Cost of every scaling stage's network relative to the base model's.
        name: Name of the rule.

    Raises:
        ValueError: The lengths differ, a ratio is not above 0, or none differs from 1.
    """
    if len(strategy) != len(cost_ratios):
        raise UsageError(f'{len(strategy)} scalings but {len(cost_ratios)} cost_ratios')
    for ratio in cost_ratios:
        number('cost_ratios', ratio, above=0)
    logs = [math.log2(ratio) for ratio in cost_ratios]
    square = sum(x * x for x in logs)
    if not square:
        raise UsageError('a rule needs a scaling stage whose cost differs from the base model')

    def exponent(key: str) -> float:
        values = (math.log2(getattr(scaling, key)) for scaling in strategy)
        return sum(x * y for x, y in zip(logs, values, strict=True)) / square

    return ScalingRule(name, exponent('depth'), exponent('width'), exponent('resolution'))
