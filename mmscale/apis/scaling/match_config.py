"""Scales the config of an mmpretrain backbone so that its true cost meets a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmscale.apis.scaling.adapters import ScalableConfig, config_cost
from mmscale.arch import Scaling
from mmscale.arch.rules import ScalingRule, scaling_rule
from mmscale.cost import Cost, LatencyModel
from mmscale.cost.matching import NotReachable, check_metric
from mmscale.errors import UsageError

# How far beyond the wanted factor match_config looks, and how closely at factors and costs.
_RANGE = 64.0
_GOOD_ENOUGH = 0.01


@dataclass(frozen=True)
class MatchedConfig:
    """A config scaled to a budget.

    Attributes:
        config: The scaled config.
        resolution: Side of its input.
        scaling: The rule's multipliers at `factor`, before rounding.
        factor: The factor solved for.
        cost: The true cost.
        metric: What the budget is about.
        target: The budget.
        achieved: The true cost in that metric.
    """

    config: dict[str, Any]
    resolution: int
    scaling: Scaling
    factor: float
    cost: Cost
    metric: str
    target: float
    achieved: float

    def __str__(self) -> str:
        return f'{self.achieved:.4g} ({self.achieved / self.target:.3f} of it)'


def match_config(
    config: Mapping[str, Any],
    rule: str | ScalingRule,
    factor: float,
    metric: str = 'flops',
    resolution: int = 224,
    tolerance: float = 0.1,
    latency_model: LatencyModel | None = None,
) -> MatchedConfig:
    """Scales a config by a rule so that its true cost is a multiple of the base model's.

    Cost grows with the rule's factor in steps, as numbers are rounded. The factor is bisected to
    the step at the budget; if both sides are too far off, one step of the resolution, of one
    depth or of one width is added to them or taken away.

    Args:
        config: See :func:`scale_config`.
        rule: A rule or its name, such as ``dWr``.
        factor: Wanted multiple of the cost.
        metric: ``flops``, ``params``, ``acts`` or ``latency``.
        resolution: Side of the base model's input.
        tolerance: How far off the cost may be, relative to the budget.
        latency_model: Predicts the latency.

    Raises:
        NotReachable: No factor found comes that near; the message names the nearest costs.
        ValueError: A setting is not allowed, or there is no adapter for the backbone.
    """
    check_metric(metric, latency_model)
    if not 0 < tolerance < 1:
        raise UsageError(f'tolerance={tolerance} must lie between 0 and 1')
    rule = scaling_rule(rule)
    rule.scaling(factor)  # checks the factor
    base = ScalableConfig(config, resolution)
    known: dict[str, tuple[dict[str, Any], Cost]] = {}

    def value(cost: Cost) -> float:
        return latency_model.predict(cost) if metric == 'latency' else getattr(cost, metric)

    target = factor * value(config_cost(base.config, resolution))
    tried: list[MatchedConfig] = []

    def look_at(at: float, backbone: dict[str, Any], size: int) -> float:
        """Actual over wanted cost of a backbone."""
        key = f'{size} {backbone}'
        if key not in known:
            scaled = base.config_of(backbone, size)
            known[key] = scaled, config_cost(scaled, size)
        scaled, cost = known[key]
        achieved = value(cost)
        scaling = rule.scaling(at)
        tried.append(MatchedConfig(scaled, size, scaling, at, cost, metric, target, achieved))
        return achieved / target

    def attempt(at: float) -> float:
        return look_at(at, *base.scaled_backbone(rule.scaling(at)))

    def best() -> MatchedConfig:
        return min(tried, key=lambda match: (abs(match.achieved - target), match.factor))

    def is_good(share: float) -> bool:
        return abs(best().achieved / target - 1) <= share

    enough = min(_GOOD_ENOUGH, tolerance)
    at, low, high = factor, factor / _RANGE, factor * _RANGE
    while high > low * (1 + _GOOD_ENOUGH):
        ratio = attempt(at)
        if is_good(enough):
            break
        low, high = (at, high) if ratio < 1 else (low, at)
        # Cost grows about as the factor does; where that leads astray, halve what is left.
        at = at / ratio if low < at / ratio < high else math.sqrt(low * high)
    for at in (low, high):
        for backbone, size in base.one_step_beside(rule.scaling(at)):
            if is_good(tolerance):
                break
            look_at(at, backbone, size)
    if is_good(tolerance):
        return best()
    below = [match for match in tried if match.achieved < target]
    above = [match for match in tried if match.achieved > target]
    nearest = [
        max(below, key=lambda match: match.achieved, default=None),
        min(above, key=lambda match: match.achieved, default=None),
    ]
    names = ' and '.join(str(match) for match in nearest if match is not None)
    raise NotReachable(
        f'{base.backbone["type"]}: {metric}={target:.4g} is not reachable by {rule.name} within '
        f'{tolerance:.0%}; the nearest are {names}',
        *nearest,
    )
