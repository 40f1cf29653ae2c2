"""Finds the network of a scaling rule whose true cost meets a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import numpy as np

from mmscale.arch import Arch, Rounding, Scaling, apply_scaling, width_rule
from mmscale.arch.adjust import Adjustment, adjust, single_adjustments
from mmscale.cost.count import Cost, check_convention, count
from mmscale.cost.latency import LatencyModel
from mmscale.errors import UsageError

METRICS = (*(field.name for field in fields(Cost)), 'latency')

# Bytes of a number in single precision.
_BYTES = 4

# Factors that match_scaling tries around the wanted one, evenly spaced in their logarithm.
_FACTORS = 801
_RANGE = 4.0

# Factors that match looks at: no larger or smaller ones, and no nearer to each other.
_LARGEST_FACTOR = 2.0**24
_FINEST = 1 + 2**-9
# Networks that are adjusted: first those whose factor is near the one that meets the budget,
# then those whose cost is off the budget by less than this.
_STRIDE = 1.05
_FACTOR_WINDOW = 16.0
_WINDOW = 2.0


def check_metric(metric: str, latency_model: LatencyModel | None) -> None:
    """Raises ValueError for an unknown metric, and for latency without a model of it."""
    if metric not in METRICS:
        raise UsageError(f'metric={metric!r:.60} is not one of {", ".join(METRICS)}')
    if metric == 'latency' and latency_model is None:
        raise UsageError('metric=latency needs a latency_model')


@dataclass(frozen=True)
class Constraints:
    """What a matched network has to keep to.

    Attributes:
        channel_divisor: Channels of the network stages are multiples of it.
        resolution_divisor: The resolution is a multiple of it; None is the base model's total
            stride, so that no feature map is rounded up.
        largest_resolution: The resolution stops growing there, depth and width go on.
        most_acts: Cap of the activations.
        most_memory: Cap of the bytes that params and acts of one image need in single precision.

    Raises:
        ValueError: A value is not allowed.
    """

    channel_divisor: int = 8
    resolution_divisor: int | None = None
    largest_resolution: int | None = None
    most_acts: float | None = None
    most_memory: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            kind = (int, float) if field.name.startswith('most_') else int
            if isinstance(value, bool) or not isinstance(value, kind) or not value >= 1:
                raise UsageError(f'constraints: {field.name}={value!r:.60} must be 1 or more')

    def admit(self, cost: Cost) -> bool:
        """Whether a cost is within the caps."""
        memory = _BYTES * (cost.params + cost.acts)
        return (self.most_acts is None or cost.acts <= self.most_acts) and (
            self.most_memory is None or memory <= self.most_memory
        )


@dataclass(frozen=True)
class Matched:
    """A network of a rule, near a budget.

    Attributes:
        arch: The network.
        scaling: The rule's multipliers at `factor`, before rounding and adjustments.
        factor: The factor solved for; rounding makes it differ from the multiple of the cost.
        adjustments: What was changed after scaling: at most one network stage, and the resolution.
        cost: The true cost.
        metric: What the budget is about.
        target: The budget.
        achieved: The true cost in that metric.
    """

    arch: Arch
    scaling: Scaling
    factor: float
    adjustments: tuple[Adjustment, ...]
    cost: Cost
    metric: str
    target: float
    achieved: float

    @property
    def deviation(self) -> float:
        """Relative distance from the budget, below 0 for a network that is too small."""
        return self.achieved / self.target - 1

    def __str__(self) -> str:
        changes = ''.join(f', {adjustment}' for adjustment in self.adjustments)
        ratio = self.achieved / self.target
        off = f'{self.deviation:+.2%}' if 0.1 < ratio < 10 else f'{ratio:.3g} times the budget'
        return f'{self.metric} {self.achieved:.6g} ({off}){changes}'


class NotReachable(UsageError):
    """No network of a rule meets a budget.

    Attributes:
        below: The nearest network that costs less, or None.
        above: The nearest network that costs more, or None.
    """

    def __init__(self, message: str, below: Matched | None, above: Matched | None) -> None:
        super().__init__(message)
        self.below = below
        self.above = above


class _Matcher:
    """The networks that a rule makes of a base model, by factor, and those one step beside."""

    def __init__(
        self,
        scaled: Callable[[float], tuple[Arch, Scaling]],
        target: float,
        metric: str,
        tolerance: float,
        constraints: Constraints,
        convention: str,
        steps: tuple[int, int],
        latency_model: LatencyModel | None,
    ) -> None:
        self._scaled = scaled
        self._target = target
        self._metric = metric
        self._tolerance = tolerance
        self._constraints = constraints
        self._convention = convention
        self._steps = steps
        self._latency_model = latency_model
        self._found: dict[float, Matched | None] = {}
        self._below: Matched | None = None
        self._above: Matched | None = None
        self._capped = False

    def _judge(
        self, arch: Arch, scaling: Scaling, factor: float, *adjustments: Adjustment
    ) -> Matched:
        cost = count(arch, self._convention)
        if self._latency_model is not None:
            # The runtime model is fitted on costs of the default convention.
            achieved = self._latency_model.predict(count(arch))
        else:
            achieved = getattr(cost, self._metric)
        found = Matched(
            arch, scaling, factor, adjustments, cost, self._metric, self._target, achieved
        )
        if not self._constraints.admit(cost):
            self._capped |= abs(found.deviation) <= self._tolerance
        elif achieved <= self._target and (not self._below or achieved > self._below.achieved):
            self._below = found
        elif achieved > self._target and (not self._above or achieved < self._above.achieved):
            self._above = found
        return found

    def _at(self, factor: float) -> Matched | None:
        """The network at a factor, or None beyond the sizes that an Arch may have."""
        if factor not in self._found:
            try:
                arch, scaling = self._scaled(factor)
            except ValueError:
                self._found[factor] = None
            else:
                self._found[factor] = self._judge(arch, scaling, factor)
        return self._found[factor]

    def _meets(self, found: Matched) -> bool:
        return abs(found.deviation) <= self._tolerance and self._constraints.admit(found.cost)

    def _larger(self, factor: float) -> bool:
        found = self._at(factor)
        return found is None or found.achieved > self._target

    def _crossing(self, start: float) -> float:
        """A factor at which the cost steps over the budget, or the bound that it stays below."""
        low = high = min(max(start, 1 / _LARGEST_FACTOR), _LARGEST_FACTOR)
        while self._larger(low) and low > 1 / _LARGEST_FACTOR:
            low /= 2
        while not self._larger(high) and high < _LARGEST_FACTOR:
            high *= 2
        while high / low > _FINEST:
            middle = math.sqrt(low * high)
            low, high = (low, middle) if self._larger(middle) else (middle, high)
        if self._at(high) is not None and self._larger(high):
            return low
        # Below the budget however large the factor: where the cost stops growing.
        most = self._at(low).achieved
        low, high = 1.0, low if self._at(1.0).achieved < most else 1.0
        while high / low > _FINEST:
            middle = math.sqrt(low * high)
            low, high = (low, middle) if self._at(middle).achieved == most else (middle, high)
        return high

    def _alike(self, one: Arch, other: Arch) -> bool:
        """Whether two networks have the same cost for the same reason."""
        if self._metric == 'params':
            one = replace(one, resolution=other.resolution)
        return one == other

    def _scan(self, low: float, high: float) -> Iterator[Matched]:
        """Networks between two factors, by bisection of the factors where they change."""
        first, last = self._at(low), self._at(high)
        if high / low <= _FINEST or first is last is None:
            return
        if first is not None and last is not None and self._alike(first.arch, last.arch):
            return
        middle = math.sqrt(low * high)
        yield from self._scan(low, middle)
        if (found := self._at(middle)) is not None:
            yield found
        yield from self._scan(middle, high)

    def _around(self, centre: float, widest: float) -> list[Matched]:
        """Networks around a factor that are worth adjusting, the nearest to the budget first."""
        found = []
        for stride in (_STRIDE, 1 / _STRIDE):
            factor = centre
            while 1 / widest < factor / centre < widest:
                here = self._at(factor)
                if here is not None:
                    found.append(here)
                    if not 1 / _WINDOW < here.achieved / self._target < _WINDOW:
                        break
                following = factor * stride
                found += self._scan(*sorted((factor, following)))
                factor = following
        found.sort(key=lambda matched: abs(math.log(matched.achieved / self._target)))
        distinct: list[Matched] = []
        for matched in found:
            # Equal networks have equal costs, so that they are neighbours here.
            if not distinct or not self._alike(matched.arch, distinct[-1].arch):
                distinct.append(matched)
        return distinct

    def _beside(self, found: Matched, both: bool) -> list[Matched]:
        """Networks one adjustment beside one, or two: of a network stage and the resolution."""
        arch = found.arch
        singles = list(single_adjustments(arch, *self._steps))
        most = self._constraints.largest_resolution or math.inf
        pixels = [
            single
            for single in singles
            if single.kind == 'resolution'
            and arch.resolution + single.step <= most
            and self._metric != 'params'
        ]
        stages = [single for single in singles if single.kind != 'resolution']
        if both:
            changes = [(stage, pixel) for stage in stages for pixel in pixels]
        else:
            changes = [(single,) for single in (*pixels, *stages)]
        beside = []
        for change in changes:
            adjusted = arch
            for adjustment in change:
                adjusted = adjust(adjusted, adjustment)
            beside.append(self._judge(adjusted, found.scaling, found.factor, *change))
        return beside

    def solve(self, start: float) -> Matched | None:
        """The network with the fewest adjustments that meets the budget, or None."""

        def nearest(some: list[Matched]) -> Matched | None:
            return min(filter(self._meets, some), key=lambda m: abs(m.deviation), default=None)

        centre = self._crossing(start)
        for widest in (_STRIDE, _FACTOR_WINDOW):
            around = self._around(centre, widest)
            if (plain := nearest(around)) is not None:
                return plain
            for both in (False, True):
                for found in around:
                    if (adjusted := nearest(self._beside(found, both))) is not None:
                        return adjusted
        return None

    def _seek_below(self) -> None:
        """Looks far below the budget, where caps leave nothing near it."""
        low, high = 1 / _LARGEST_FACTOR, _LARGEST_FACTOR
        while high / low > _FINEST:
            middle = math.sqrt(low * high)
            found = self._at(middle)
            fits = (
                found is not None
                and found.achieved <= self._target
                and self._constraints.admit(found.cost)
            )
            low, high = (middle, high) if fits else (low, middle)

    def failure(self) -> NotReachable:
        """What to say when :meth:`solve` found nothing."""
        if self._below is None:
            self._seek_below()
        sides = ' and '.join(
            f'{side} at factor {side.factor:.4g}'
            for side in (self._below, self._above)
            if side is not None
        )
        caps = '; networks that meet it are above the caps' if self._capped else ''
        message = (
            f'{self._metric}={self._target:g} within {self._tolerance:g} is not reachable'
            f'{caps}; the nearest are {sides or "none at all"}'
        )
        return NotReachable(message, self._below, self._above)


def match(
    base: Arch,
    scaling_of: Callable[[float], Scaling],
    target: float,
    metric: str = 'flops',
    tolerance: float = 0.01,
    constraints: Constraints = Constraints(),
    convention: str = 'pycls',
    rule: str = 'pycls',
    mode: str = 'nearest',
    latency_model: LatencyModel | None = None,
) -> Matched:
    """Solves a scaling rule for the factor at which the network's true cost meets a budget.

    Where rounding lets no factor meet it, one step is added to or taken from a network that the
    rule makes: fewest adjustments first, so the resolution *or* the depth or the width of a
    single network stage, then a network stage *and* the resolution. Networks are tried in the
    order of their distance from the budget; of those one step beside one, the nearest is taken.
    All this first with networks whose factor is within 5 % of where the cost steps over the
    budget, then with all whose cost is within a factor of two of it.

    Args:
        base: The base model.
        scaling_of: The rule, from a factor to a Scaling: :meth:`ScalingRule.scaling`.
        target: The budget, in units of `metric`.
        metric: ``flops``, ``params``, ``acts`` or ``latency`` (milliseconds).
        tolerance: Largest relative deviation from the budget.
        constraints: What the network has to keep to.
        convention: See :func:`mmscale.cost.count`.
        rule: How shapes are scaled, see :func:`mmscale.arch.apply_scaling`.
        mode: How scaled numbers become integers, see :class:`mmscale.arch.Rounding`.
        latency_model: Predicts the latency; needed for that metric alone.

    Raises:
        NotReachable: No network of the rule, nor one a step beside, meets the budget.
        ValueError: A setting is not allowed, or the rule cannot scale this base model.
    """
    check_metric(metric, latency_model)
    for key, value in (('target', target), ('tolerance', tolerance)):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UsageError(f'{key}={value!r:.60} must be a number')
        if not 0 < value < math.inf:
            raise UsageError(f'{key}={value} must be above 0')
    check_convention(convention)
    divisor = constraints.resolution_divisor or base.strides[-1]
    largest = constraints.largest_resolution
    if largest is not None and largest < divisor:
        raise UsageError(
            f'constraints: largest_resolution={largest} leaves no multiple of {divisor}, which '
            'resolutions are: set a smaller resolution_divisor'
        )
    rounding = Rounding(mode, constraints.channel_divisor, divisor, strict=rule == 'pycls')

    def scaled(factor: float) -> tuple[Arch, Scaling]:
        scaling = scaling_of(factor)
        if largest is not None:
            limit = largest // divisor * divisor / base.resolution
            scaling = replace(scaling, resolution=min(scaling.resolution, limit))
        return apply_scaling(base, scaling, rule, rounding), scaling

    scaled(1.0)  # what is wrong with the base model or the rule shows here
    matcher = _Matcher(
        scaled,
        target,
        metric,
        tolerance,
        constraints,
        convention,
        (constraints.channel_divisor, divisor),
        latency_model if metric == 'latency' else None,
    )
    if metric == 'latency':
        present = latency_model.predict(count(base))
    else:
        present = getattr(count(base, convention), metric)
    found = matcher.solve(target / present)
    if found is None:
        raise matcher.failure()
    return found


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
        raise UsageError(f'metric={metric!r:.60} is not one of {", ".join(metrics)}')
    if isinstance(factor, bool) or not isinstance(factor, (int, float)):
        raise UsageError(f'factor={factor!r:.60} must be a number of 1 or more')
    if not 1 <= factor < math.inf:
        raise UsageError(f'factor={factor} must be a number of 1 or more')
    width_rule(rule)
    target = factor * getattr(count(base), metric)
    if factor == 1:
        return Scaling()

    def distance(candidate: Scaling) -> float:
        scaled = apply_scaling(base, candidate, rule, rounding)
        return abs(getattr(count(scaled), metric) - target)

    factors = factor * np.geomspace(1 / _RANGE, _RANGE, _FACTORS)
    return min((scaling_of(float(f)) for f in factors if f >= 1), key=distance)
