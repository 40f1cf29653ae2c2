"""Finds the network of a scaling rule whose true cost meets a budget."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from mmscale.arch import Arch, Rounding, Scaling, apply_scaling, get_arch, width_rule
from mmscale.arch.adjust import Adjustment, adjust, single_adjustments
from mmscale.arch.checks import choice, number
from mmscale.cost.count import Cost, check_convention, count
from mmscale.cost.latency import LatencyModel
from mmscale.cost.scaled import (
    METRICS,
    Constraints,
    Network,
    NotReachable,
    Scaled,
    check_metric,
    value_of,
)
from mmscale.errors import UsageError

# Factors that match_scaling tries around the wanted one, evenly spaced in their logarithm.
_FACTORS = 801
_RANGE = 4.0

# Factors that a solver looks at: no larger or smaller ones, and no nearer to each other.
_LARGEST_FACTOR = 2.0**24
_FINEST = 1 + 2**-9
# Networks that are adjusted: first those whose factor is near the one that meets the budget,
# then those whose cost is off the budget by less than this.
_STRIDE = 1.05
_FACTOR_WINDOW = 16.0
_WINDOW = 2.0
# Where networks are expensive: the range of factors, and how near is near enough.
_EXPENSIVE_RANGE = 64.0
_GOOD_ENOUGH = 0.01


class Candidates(Protocol):
    """The networks that a rule makes of a base model.

    Attributes:
        expensive: Whether a network takes so long to count that few should be looked at.
    """

    expensive: bool

    def at(self, factor: float) -> tuple[Network, Scaling]:
        """The network at a factor, and the rule's multipliers there.

        Raises:
            ValueError: There is none, beyond the sizes that a network may have.
        """

    def neighbours(
        self, network: Network, scaling: Scaling, reach: int
    ) -> Iterator[tuple[Network, tuple[object, ...]]]:
        """Networks beside one, with the adjustments.

        One adjustment (a `reach` of 1), one of a network stage and one of the resolution (2), or
        of two network stages (3).
        """

    def cost(self, network: Network) -> tuple[Cost, float]:
        """The cost of a network, and its value in the metric of the budget."""

    def alike(self, one: Network, other: Network) -> bool:
        """Whether two networks have the same cost for the same reason."""


class _Solver:
    """Looks among candidates for the network that meets a budget."""

    def __init__(
        self,
        candidates: Candidates,
        metric: str,
        target: float,
        tolerance: float,
        constraints: Constraints = Constraints(),  # noqa: B008 - immutable
    ) -> None:
        self._candidates = candidates
        self._metric = metric
        self._target = target
        self._tolerance = tolerance
        self._constraints = constraints
        self._found: dict[float, Scaled | None] = {}
        self._below: Scaled | None = None
        self._above: Scaled | None = None
        self._capped = False

    def _judge(
        self, network: Network, scaling: Scaling, factor: float, adjustments: tuple = ()
    ) -> Scaled:
        cost, achieved = self._candidates.cost(network)
        found = Scaled(
            network, scaling, factor, cost, self._metric, self._target, achieved, adjustments
        )
        if not self._constraints.admit(cost):
            self._capped |= abs(found.deviation) <= self._tolerance
        elif achieved <= self._target and (not self._below or achieved > self._below.achieved):
            self._below = found
        elif achieved > self._target and (not self._above or achieved < self._above.achieved):
            self._above = found
        return found

    def _at(self, factor: float) -> Scaled | None:
        """The network at a factor, or None beyond the sizes that a network may have."""
        if factor not in self._found:
            try:
                network, scaling = self._candidates.at(factor)
            except ValueError:
                self._found[factor] = None
            else:
                self._found[factor] = self._judge(network, scaling, factor)
        return self._found[factor]

    def _beside(self, found: Scaled, reach: int) -> Iterator[Scaled]:
        for network, changes in self._candidates.neighbours(found.network, found.scaling, reach):
            yield self._judge(network, found.scaling, found.solved, changes)

    def _meets(self, found: Scaled) -> bool:
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

    def _scan(self, low: float, high: float) -> Iterator[Scaled]:
        """Networks between two factors, by bisection of the factors where they change."""
        first, last = self._at(low), self._at(high)
        if high / low <= _FINEST or first is last is None:
            return
        if (
            first is not None
            and last is not None
            and self._candidates.alike(first.network, last.network)
        ):
            return
        middle = math.sqrt(low * high)
        yield from self._scan(low, middle)
        if (found := self._at(middle)) is not None:
            yield found
        yield from self._scan(middle, high)

    def _around(self, centre: float, widest: float) -> list[Scaled]:
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
        distinct: list[Scaled] = []
        for matched in found:
            # Equal networks have equal costs, so that they are neighbours here.
            if not distinct or not self._candidates.alike(matched.network, distinct[-1].network):
                distinct.append(matched)
        return distinct

    def solve(self, start: float) -> Scaled | None:
        """The network with the fewest adjustments that meets the budget, or None."""
        if self._candidates.expensive:
            return self._solve_with_few(start)

        def nearest(some: Iterable[Scaled]) -> Scaled | None:
            return min(filter(self._meets, some), key=lambda m: abs(m.deviation), default=None)

        centre = self._crossing(start)
        for widest in (_STRIDE, _FACTOR_WINDOW):
            around = self._around(centre, widest)
            if (plain := nearest(around)) is not None:
                return plain
            for reach in (1, 2, 3):
                for found in around:
                    if (adjusted := nearest(self._beside(found, reach))) is not None:
                        return adjusted
        return None

    def _solve_with_few(self, start: float) -> Scaled | None:
        """The nearest network of a bisection that ends once one is near enough, or None.

        If both sides of the last step are too far off, what lies one step beside them is tried.
        """
        tried: list[Scaled] = []

        def near(share: float) -> Scaled | None:
            best = min(tried, key=lambda made: (abs(made.achieved - self._target), made.solved))
            return best if abs(best.deviation) <= share else None

        def made_at(factor: float) -> Scaled:
            return self._judge(*self._candidates.at(factor), factor)

        at, low, high = start, start / _EXPENSIVE_RANGE, start * _EXPENSIVE_RANGE
        while high > low * (1 + _GOOD_ENOUGH):
            tried.append(made_at(at))
            if near(min(_GOOD_ENOUGH, self._tolerance)):
                break
            ratio = tried[-1].achieved / self._target
            low, high = (at, high) if ratio < 1 else (low, at)
            # Cost grows about as the factor does; where that leads astray, halve what is left.
            at = at / ratio if low < at / ratio < high else math.sqrt(low * high)
        for at in (low, high):
            if (found := near(self._tolerance)) is not None:
                return found
            for made in self._beside(made_at(at), reach=1):
                tried.append(made)
                if (found := near(self._tolerance)) is not None:
                    return found
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

    def _usual_factor(self, found: Scaled) -> float:
        """Of the factors that make a network, the one nearest to 1."""
        if self._candidates.expensive:
            return found.solved
        made = self._at(found.solved).network
        far, near = found.solved, 1.0
        while max(far / near, near / far) > _FINEST:
            middle = math.sqrt(far * near)
            other = self._at(middle)
            if other is not None and self._candidates.alike(other.network, made):
                far = middle
            else:
                near = middle
        return far

    def failure(self) -> NotReachable:
        """What to say when :meth:`solve` found nothing."""
        if self._below is None and not self._candidates.expensive:
            self._seek_below()
        sides = ' and '.join(
            f'{side} at factor {self._usual_factor(side):.4g} and {side.resolution} px'
            for side in (self._below, self._above)
            if side is not None
        )
        caps = '; networks that meet it are above the caps' if self._capped else ''
        message = (
            f'{self._metric}={self._target:g} within {self._tolerance:g} is not reachable'
            f'{caps}; the nearest are {sides or "none at all"}'
        )
        return NotReachable(message, self._below, self._above)


@dataclass(frozen=True)
class _Archs:
    """What a rule makes of an Arch, see :class:`Candidates`."""

    base: Arch
    scaling_of: Callable[[float], Scaling]
    metric: str
    largest_resolution: int | None
    convention: str
    rule: str
    rounding: Rounding
    latency_model: LatencyModel | None
    expensive = False

    def at(self, factor: float) -> tuple[Arch, Scaling]:
        scaling = self.scaling_of(factor)
        if self.largest_resolution is not None:
            divisor = self.rounding.resolution_divisor
            limit = self.largest_resolution // divisor * divisor / self.base.resolution
            scaling = replace(scaling, resolution=min(scaling.resolution, limit))
        return apply_scaling(self.base, scaling, self.rule, self.rounding), scaling

    def neighbours(
        self, arch: Arch, scaling: Scaling, reach: int
    ) -> Iterator[tuple[Arch, tuple[object, ...]]]:
        most = self.largest_resolution or math.inf
        divisors = self.rounding.channel_divisor, self.rounding.resolution_divisor
        stages, pixels = [], []
        for single in single_adjustments(arch, *divisors):
            if single.kind != 'resolution':
                stages.append(single)
            elif arch.resolution + single.step <= most and self.metric != 'params':
                pixels.append(single)
        chosen: Iterable[tuple[Adjustment, ...]] = ((single,) for single in (*pixels, *stages))
        if reach == 2:
            chosen = itertools.product(stages, pixels)
        elif reach == 3:
            pairs = itertools.combinations(stages, 2)
            chosen = ((one, other) for one, other in pairs if one.stage != other.stage)
        for changes in chosen:
            adjusted = arch
            for change in changes:
                adjusted = adjust(adjusted, change, self.rounding.channel_divisor)
            yield adjusted, changes

    def cost(self, arch: Arch) -> tuple[Cost, float]:
        cost = count(arch, self.convention)
        # The runtime model is fitted on costs of the default convention.
        own = count(arch) if self.metric == 'latency' else cost
        return cost, value_of(own, self.metric, self.latency_model)

    def alike(self, one: Arch, other: Arch) -> bool:
        if self.metric == 'params':
            one = replace(one, resolution=other.resolution)
        return one == other


def solve(
    candidates: Candidates,
    metric: str,
    target: float,
    tolerance: float,
    start: float,
    constraints: Constraints = Constraints(),  # noqa: B008 - immutable
) -> Scaled:
    """The network among candidates that meets a budget, see :func:`match`.

    Args:
        candidates: The networks of a rule.
        metric: What the budget is about.
        target: The budget.
        tolerance: Largest relative deviation from the budget.
        start: A factor to begin at.
        constraints: Caps.

    Raises:
        NotReachable: None does.
    """
    solver = _Solver(candidates, metric, target, tolerance, constraints)
    found = solver.solve(start)
    if found is None:
        raise solver.failure()
    return replace(found, factor=start, matched=True)


def match(
    base: str | Path | dict | Arch,
    scaling_of: Callable[[float], Scaling],
    target: float,
    metric: str = 'flops',
    tolerance: float = 0.01,
    constraints: Constraints = Constraints(),  # noqa: B008 - immutable
    convention: str = 'pycls',
    rule: str = 'pycls',
    rounding: Rounding | None = None,
    latency_model: LatencyModel | None = None,
) -> Scaled:
    """Solves a scaling rule for the factor at which the network's true cost meets a budget.

    Where rounding lets no factor meet it, one step is added to or taken from a network that the
    rule makes: fewest adjustments first, so the resolution *or* the depth or the width of a
    single network stage, then a network stage *and* the resolution, then two network stages.
    Hidden widths keep to the rounding's divisor as widths do. Networks are tried in the order of
    their distance from the budget; of those one step beside one, the nearest is taken.
    All this first with networks whose factor is within 5 % of where the cost steps over the
    budget, then with all whose cost is within a factor of two of it.

    Args:
        base: The base model, as :func:`mmscale.arch.get_arch` finds it.
        scaling_of: The rule, from a factor to a Scaling: :meth:`ScalingRule.scaling`.
        target: The budget, in units of `metric`.
        metric: ``flops``, ``params``, ``acts`` or ``latency`` (milliseconds).
        tolerance: Largest relative deviation from the budget.
        constraints: Caps that the network has to keep to.
        convention: See :func:`mmscale.cost.count`.
        rule: The width rule, see :func:`mmscale.arch.apply_scaling`.
        rounding: How scaled numbers become integers; by default to the nearest, channels to
            multiples of 8, the resolution to one of the base model's total stride, so that no
            feature map is rounded up.
        latency_model: Predicts the latency; needed for that metric alone.

    Raises:
        NotReachable: No network of the rule, nor one a step beside, meets the budget.
        ValueError: A setting is not allowed, or the width rule cannot scale this base model.
    """
    base = get_arch(base)
    check_metric(metric, latency_model)
    number('target', target, above=0)
    number('tolerance', tolerance, above=0)
    check_convention(convention)
    if rounding is None:
        rounding = Rounding('nearest', 8, base.strides[-1], strict=rule == 'pycls')
    largest, divisor = constraints.largest_resolution, rounding.resolution_divisor
    if largest is not None and largest < divisor:
        raise UsageError(
            f'constraints: largest_resolution={largest} leaves no multiple of {divisor}, which '
            'resolutions are: set a smaller resolution_divisor'
        )
    archs = _Archs(base, scaling_of, metric, largest, convention, rule, rounding, latency_model)
    archs.at(1.0)  # what is wrong with the base model or the rule shows here
    present = archs.cost(base)[1]
    return solve(archs, metric, target, tolerance, target / present, constraints)


def match_scaling(
    base: str | Path | dict | Arch,
    scaling_of: Callable[[float], Scaling],
    factor: float,
    rule: str = 'search',
    metric: str = 'flops',
    rounding: Rounding = Rounding(),  # noqa: B008 - immutable
) -> Scaling:
    """The Scaling of a rule whose true cost is nearest to a multiple of the base's.

    Rounding makes a rule miss: twice the depth of one block out of three is not a third more.

    Args:
        base: The base model, as :func:`mmscale.arch.get_arch` finds it.
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
    base = get_arch(base)
    choice('metric', metric, METRICS[:-1])
    number('factor', factor, 1)
    width_rule(rule)
    target = factor * getattr(count(base), metric)
    if factor == 1:
        return Scaling()

    def distance(candidate: Scaling) -> float:
        scaled = apply_scaling(base, candidate, rule, rounding)
        return abs(getattr(count(scaled), metric) - target)

    factors = factor * np.geomspace(1 / _RANGE, _RANGE, _FACTORS)
    return min((scaling_of(float(f)) for f in factors if f >= 1), key=distance)
