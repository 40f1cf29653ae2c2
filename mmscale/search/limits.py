"""Budgets and caps: what networks may cost in flops, params, acts and latency."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmscale.arch import Scaling
from mmscale.arch.checks import choice, number
from mmscale.cost import METRICS, Costs, CostTable, LatencyModel
from mmscale.cost.scaled import check_metric
from mmscale.errors import UsageError

PerStage = float | Sequence[float | None]
"""A number, or one (or None) per scaling stage."""


@dataclass(frozen=True)
class Limit:
    """What the networks of one scaling stage may cost in one metric.

    Attributes:
        key: The setting that says so, for messages.
        metric: ``flops``, ``params``, ``acts`` or ``latency``, in milliseconds.
        value: The budget or the cap; with `is_multiple` in units of the base model's cost.
        tolerance: Largest relative deviation from a budget; None for a cap.
        is_multiple: Whether it is the budget that grows with the base model's cost.
        model: Predicts latencies.
    """

    key: str
    metric: str
    value: float
    tolerance: float | None = None
    is_multiple: bool = False
    model: LatencyModel | None = None

    def deviations(self, costs: Costs, base: NDArray | None = None) -> NDArray[np.float64]:
        """Relative deviations of costs, signed.

        Args:
            costs: Of n networks.
            base: Costs of their base models in this metric, shape (n,): of a multiple.

        Returns:
            Shape (n,).
        """
        wanted = base * self.value if self.is_multiple else self.value
        return measure(costs, self.metric, self.model) / wanted - 1

    def excess(self, deviations: NDArray[np.float64]) -> NDArray[np.float64]:
        """By how much deviations are larger than allowed, 0 where they are not, shape (n,)."""
        over = deviations if self.tolerance is None else np.abs(deviations) - self.tolerance
        return np.maximum(over, 0)

    @property
    def least(self) -> float:
        """The lowest cost that it allows; of a multiple, in units of the base model's."""
        return 0 if self.tolerance is None else self.value * (1 - self.tolerance)

    def __str__(self) -> str:
        text = shown(self.value, self.metric)
        return f'at most {text}' if self.tolerance is None else f'{text} within {self.tolerance:g}'

    def nearest(self, deviations: NDArray[np.float64]) -> str:
        """What was wanted, and what is next to it on either side among those that miss it."""
        found = [d.max() for d in [deviations[deviations < 0]] if len(d)]
        found += [d.min() for d in [deviations[deviations >= 0]] if len(d)]
        if self.is_multiple:
            wanted = f"{self.value:g} x the base model's {self.metric}"
            reached = [f'{(1 + deviation) * self.value:.4g}' for deviation in found]
        elif self.key == 'budget':
            wanted = f'1 x {self.value:,}'
            reached = [f'{1 + deviation:.4g}' for deviation in found]
        else:
            wanted = f'at most {shown(self.value, self.metric)}'
            reached = [f'{(1 + deviation) * self.value:.4g}' for deviation in found]
            if self.tolerance is not None:
                wanted = shown(self.value, self.metric)
        if self.tolerance is not None:
            wanted += f' within a tolerance of {self.tolerance:.3g}'
        return f'wanted {wanted}, nearest within reach {" and ".join(reached)}'


def measure(costs: Costs, metric: str, model: LatencyModel | None = None) -> NDArray:
    """Costs in one metric, shape (n,); latencies are predicted, in milliseconds."""
    return model.predict(costs) if metric == 'latency' else getattr(costs, metric)


def shown(value: float, metric: str) -> str:
    """A cost for messages."""
    return f'{value:.4g} ms' if metric == 'latency' else f'{value:,.15g} {metric}'


def read_latency_model(value: LatencyModel | str | Path | None) -> LatencyModel | None:
    """The setting `latency_model`, a model or its file.

    Raises:
        UsageError: There is no such file, or it is damaged.
    """
    if value is None or isinstance(value, LatencyModel):
        return value
    if not isinstance(value, (str, Path)):
        raise UsageError(f'latency_model={value!r:.60} must be the path of a JSON file')
    try:
        return LatencyModel.load(value)
    except (OSError, ValueError) as error:
        raise UsageError(f'latency_model: {error}') from error


def model_settings(model: LatencyModel | None) -> dict[str, Any]:
    """What a result says of the model of latencies, plain JSON data; nothing without one."""
    if model is None:
        return {}
    constants = {key: getattr(model, key) for key in ('a', 'b', 'c')}
    return {'latency_model': {**constants, 'setting': asdict(model.setting)}}


class Limits:
    """Budgets and caps of all scaling stages.

    Args:
        table: Costs of the space.
        budgets: By metric. The first one grows: it is of the base model, and that of scaling
            stage j is 2^j times the base model's actual cost. Of the others a number is of the
            base model alone, a list of every scaling stage.
        caps: By metric, what no network may exceed: a number, or a list with one (or None) per
            scaling stage.
        tolerance: Largest relative deviation from any budget.
        latency_model: Predicts latencies.
        grows: Whether the first budget grows. If not, every budget that is a number is of every
            network, whatever its scaling stage.

    Attributes:
        growing: The metric of the budget that grows, None without.

    Raises:
        UsageError: A setting is not allowed.
    """

    def __init__(
        self,
        table: CostTable,
        budgets: Mapping[str, PerStage] | None = None,
        caps: Mapping[str, PerStage] | None = None,
        tolerance: float = 0.05,
        latency_model: LatencyModel | None = None,
        grows: bool = True,
    ) -> None:
        number('tolerance', tolerance, above=0, below=1)
        self.table = table
        self.budgets = _checked('budget', budgets, table, latency_model)
        self.caps = _checked('caps', caps, table, latency_model)
        self.tolerance = tolerance
        self.latency_model = latency_model
        self.growing = next(iter(self.budgets), None) if grows else None
        if self.growing and isinstance(self.budgets[self.growing], list):
            raise UsageError(
                f'budget.{self.growing}={self.budgets[self.growing]!r:.60} must be a number: the '
                f'first budget is of the base model, and doubles from scaling stage to scaling '
                f'stage; only the others may be lists'
            )
        stages = range(len(table.space.scaling_stages))
        self._stages = tuple(tuple(self._of(j)) for j in stages)

    def _of(self, stage: int) -> Iterable[Limit]:
        model = self.latency_model
        for metric, value in self.budgets.items():
            if metric == self.growing:
                value = 2**stage if stage else value
                yield Limit('budget', metric, value, self.tolerance, stage > 0, model)
                continue
            key = f'budget.{metric}'
            if isinstance(value, list):
                key, value = f'{key}[{stage}]', value[stage]
            elif stage and self.growing:
                continue
            if value is not None:
                yield Limit(key, metric, value, self.tolerance, model=model)
        for metric, value in self.caps.items():
            key = f'caps.{metric}'
            if isinstance(value, list):
                key, value = f'{key}[{stage}]', value[stage]
            if value is not None:
                yield Limit(key, metric, value, model=model)

    def of(self, scaling_stage: int) -> tuple[Limit, ...]:
        """The limits of a scaling stage: the budget that grows, other budgets, caps."""
        return self._stages[scaling_stage]

    def excess(
        self, costs: Costs, scaling_stage: int, base: NDArray | None = None
    ) -> NDArray[np.float64]:
        """Sum over the limits of a scaling stage of what deviates more than allowed.

        Args:
            costs: Of n networks.
            scaling_stage: From 0 on.
            base: Costs of their base models in units of :attr:`growing`, shape (n,); needed from
                scaling stage 1 on where a budget grows.

        Returns:
            Shape (n,); 0 for networks that keep to all.
        """
        total = np.zeros(len(costs.flops))
        for limit in self.of(scaling_stage):
            total += limit.excess(limit.deviations(costs, base))
        return total

    def first_missed(
        self, costs: Costs, scaling_stage: int, base: NDArray | None = None
    ) -> tuple[tuple[Limit, ...], str] | None:
        """The limits of a scaling stage up to the one that none of some networks meets.

        Args:
            costs: Of the networks.
            scaling_stage: From 0 on.
            base: As for :meth:`excess`.

        Returns:
            The limits, of which no network meets the last with all before it, and what those
            that meet the others reach; None where a network meets all.
        """
        left = np.ones(len(costs.flops), dtype=bool)
        for i, limit in enumerate(self.of(scaling_stage)):
            deviations = limit.deviations(costs, base)
            met = left & (limit.excess(deviations) == 0)
            if not met.any():
                return self.of(scaling_stage)[: i + 1], limit.nearest(deviations[left])
            left = met
        return None

    def range(self, metric: str, scaling: Scaling = Scaling()) -> tuple[float, float]:  # noqa: B008
        """Lowest and highest cost of any base model under a scaling; exact."""
        if metric != 'latency':
            return self.table.range(metric, scaling)
        model = self.latency_model
        low, high = self.table.range_of((model.c, 0.0, model.b), scaling)
        return model.a + low, model.a + high

    def check(
        self, scalings: Callable[[int], Sequence[Scaling]], stages: Iterable[int], noun: str
    ) -> None:
        """Checks that each limit for itself is within reach, and no cap below a budget.

        Args:
            scalings: Gives the scalings of a scaling stage.
            stages: The scaling stages that count.
            noun: What messages call a base model.

        Raises:
            UsageError: One is not; the message names what is.
        """
        for stage in stages:
            limits = [limit for limit in self.of(stage) if not limit.is_multiple]
            for limit in limits:
                self.check_reach(limit, stage, scalings(stage), noun)
            least = {limit.metric: self._least(limit) for limit in self.of(stage)[::-1]}
            for limit in limits:
                if limit.tolerance is None and limit.value < least[limit.metric]:
                    raise UsageError(
                        f'{limit.key}={shown(limit.value, limit.metric)} is out of reach: the '
                        f'budget of scaling stage {stage} is at least '
                        f'{shown(least[limit.metric], limit.metric)} (tolerance '
                        f'{self.tolerance:.3g})'
                    )

    def _least(self, limit: Limit) -> float:
        """The lowest cost that a limit allows, whatever the base model."""
        return limit.least * (self.of(0)[0].least if limit.is_multiple else 1)

    def check_reach(
        self, limit: Limit, stage: int, scalings: Sequence[Scaling], noun: str
    ) -> None:
        """Checks that a limit is within reach of networks under any of some scalings.

        Args:
            limit: The limit, which is no multiple.
            stage: The scaling stage that messages name, if it is not 0.
            scalings: The scalings.
            noun: What messages call a network of scaling stage 0.

        Raises:
            UsageError: It is not; the message names the range that is.
        """
        is_cap = limit.tolerance is None
        slack = 0 if is_cap else self.tolerance
        low, high = math.inf, -math.inf
        for scaling in scalings:
            own = self.range(limit.metric, scaling)
            low, high = min(low, own[0]), max(high, own[1])
            # Most are within reach of the first scaling: the others need not be looked at.
            if low <= limit.value * (1 + slack) and (is_cap or high >= limit.value * (1 - slack)):
                return
        low_text = f'{low:.4g}' if limit.metric == 'latency' else f'{low:,}'
        who = f'{noun}s of this space' if stage == 0 else f'networks of scaling stage {stage}'
        tolerance = '' if is_cap else f' (tolerance {self.tolerance:.3g})'
        raise UsageError(
            f'{limit.key}={shown(limit.value, limit.metric)} is out of reach: {who} have '
            f'{low_text} to {shown(high, limit.metric)}{tolerance}'
        )

    @property
    def settings(self) -> dict[str, Any]:
        """What there is beside one budget, plain JSON data."""
        found: dict[str, Any] = {}
        if len(self.budgets) > 1:
            found['budgets'] = dict(self.budgets)
        if self.caps:
            found['caps'] = dict(self.caps)
        if 'latency' in (*self.budgets, *self.caps):
            found |= model_settings(self.latency_model)
        return found

    def lines(self) -> list[str]:
        """The limits beside the budget that grows, a line each, for people."""
        found = []
        for kind, values in (('budget', self.budgets), ('cap', self.caps)):
            for metric, value in values.items():
                if metric == self.growing and kind == 'budget':
                    continue
                if isinstance(value, list):
                    texts = ['-' if one is None else shown(one, metric) for one in value]
                    text = f'{", ".join(texts)} by scaling stage'
                else:
                    text = shown(value, metric)
                    if kind == 'cap' and len(self._stages) > 1:
                        text += ' for every network'
                found.append(f'{kind} of {metric}: {text}')
        return found


def _checked(
    owner: str,
    values: Mapping[str, PerStage] | None,
    table: CostTable,
    latency_model: LatencyModel | None,
) -> dict[str, float | list[float | None]]:
    """Budgets or caps by metric, as plain data."""
    if values is None:
        return {}
    if not isinstance(values, Mapping) or not values:
        raise UsageError(
            f'{owner}={values!r:.60} must be a dict with one or more of {", ".join(METRICS)}'
        )
    stages = len(table.space.scaling_stages)
    found: dict[str, float | list[float | None]] = {}
    for metric, value in values.items():
        key = f'{owner}.{choice(owner, metric, METRICS)}'
        check_metric(metric, latency_model, key)
        if not isinstance(value, (list, tuple)):
            found[metric] = number(key, value, above=0)
            continue
        if len(value) != stages:
            raise UsageError(
                f'{key}={list(value)!r:.60} must be a number, or a list with a number or None '
                f'for each of the {stages} scaling stages'
            )
        for j, one in enumerate(value):
            if one is not None:
                number(f'{key}[{j}]', one, above=0)
        found[metric] = list(value)
    return found
