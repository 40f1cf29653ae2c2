"""A scaled network with its cost and how it was made, and the caps it may have to keep to."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

from mmscale.arch import Arch, Scaling, group_widths
from mmscale.arch.checks import choice, integer, number
from mmscale.cost.count import Cost, count
from mmscale.cost.latency import LatencyModel
from mmscale.errors import UsageError
from mmscale.tables import size_text

METRICS = (*(field.name for field in fields(Cost)), 'latency')

# Bytes of a number in single precision.
_BYTES = 4


def check_metric(
    metric: str, latency_model: LatencyModel | None, key: str = 'metric=latency'
) -> None:
    """Raises UsageError for an unknown metric, and for latency without a model that is of use.

    Args:
        metric: The metric.
        latency_model: Predicts latencies.
        key: The setting that asks for latencies, for messages.
    """
    if choice('metric', metric, METRICS) != 'latency':
        return
    if latency_model is None:
        raise UsageError(f'{key} needs a latency_model')
    if latency_model.is_constant:
        raise UsageError(
            f'latency_model predicts {latency_model.a:.4g} ms for every network: the times that '
            f'it was fitted to do not grow with acts or flops; fit it anew with more repeats, on '
            f'a machine that does nothing else'
        )


def value_of(cost: Cost, metric: str, latency_model: LatencyModel | None = None) -> float:
    """A cost in one metric; the latency is predicted by the model.

    Raises:
        UsageError: There is no such metric, or no model for the latency.
    """
    check_metric(metric, latency_model)
    return latency_model.predict(cost) if metric == 'latency' else getattr(cost, metric)


@dataclass(frozen=True)
class Constraints:
    """Caps that a matched network has to keep to.

    Attributes:
        largest_resolution: The resolution stops growing there, depth and width go on.
        most_acts: Cap of the activations.
        most_memory: Cap of the bytes that params and acts of one image need in single precision.

    Raises:
        UsageError: A value is not allowed.
    """

    largest_resolution: int | None = None
    most_acts: float | None = None
    most_memory: float | None = None

    def __post_init__(self) -> None:
        if self.largest_resolution is not None:
            integer('constraints: largest_resolution', self.largest_resolution)
        for key in ('most_acts', 'most_memory'):
            if getattr(self, key) is not None:
                number(f'constraints: {key}', getattr(self, key), 1)

    def admit(self, cost: Cost) -> bool:
        """Whether a cost is within the caps."""
        memory = _BYTES * (cost.params + cost.acts)
        return (self.most_acts is None or cost.acts <= self.most_acts) and (
            self.most_memory is None or memory <= self.most_memory
        )


class Network(Protocol):
    """What is scaled: an Arch, or the config of another network."""

    depths: Any
    widths: Any
    resolution: int | tuple[int, int]


@dataclass(frozen=True, repr=False)
class Scaled:
    """A scaled network, the way it was made, and its cost.

    Attributes:
        network: An Arch, or the :class:`mmscale.apis.scaling.adapters.ScaledModel` of a config.
        scaling: The rule's multipliers at `solved`, before rounding and adjustments.
        solved: The rule's factor; rounding makes it differ from the multiple of the cost.
        cost: The true cost.
        metric: What the budget is about.
        target: The budget.
        achieved: The true cost in that metric.
        adjustments: What was changed after scaling: at most one network stage, and the resolution.
        name: Name of the base model.
        strategy: Name of the rule.
        factor: Multiple of the base model's cost that was asked for.
        matched: Whether the budget was solved for, in matched mode.
        convention: How the cost is counted, see :func:`mmscale.cost.count`.
    """

    network: Network
    scaling: Scaling
    solved: float
    cost: Cost
    metric: str
    target: float
    achieved: float
    adjustments: tuple[object, ...] = ()
    name: str = ''
    strategy: str = ''
    factor: float = 1.0
    matched: bool = False
    convention: str = 'mmscale'

    def __repr__(self) -> str:
        costs = ', '.join(f'{value:,} {key}' for key, value in asdict(self.cost).items())
        resolution = self.resolution
        shape = (resolution, resolution) if isinstance(resolution, int) else resolution
        return f'<{self.label}: {size_text(shape)}, {costs}, convention {self.convention}>'

    @property
    def arch(self) -> Arch | None:
        """The Arch, or None if the network is the config of another one."""
        return self.network if isinstance(self.network, Arch) else None

    @property
    def resolution(self) -> int | tuple[int, int]:
        """Side of the images, in pixels, or height and width where these differ."""
        return self.network.resolution

    @property
    def group_widths(self) -> tuple[int, ...] | None:
        """Channels per group of every network stage, or None where there are no groups."""
        own = group_widths(self.arch) if self.arch else self.network.group_widths
        return None if own is None else tuple(own)

    @property
    def default_cost(self) -> Cost:
        """The cost in the default convention, which runtime models are fitted on."""
        return count(self.arch) if self.arch else self.cost

    @property
    def label(self) -> str:
        """Name for files: base model, strategy and factor."""
        return label_of(self.name, self.strategy, self.factor)

    @property
    def deviation(self) -> float:
        """Relative distance from the budget, below 0 for a network that is too small."""
        return self.achieved / self.target - 1

    def to_json(self) -> dict[str, Any]:
        """Returns the network as plain JSON data; target and achieved in matched mode alone."""
        widths = self.group_widths
        data = {
            'name': self.name,
            'strategy': self.strategy,
            'factor': self.factor,
            'depths': list(self.network.depths),
            'widths': list(self.network.widths),
            'group_widths': None if widths is None else list(widths),
            'resolution': self.resolution,
            **asdict(self.cost),
        }
        if self.matched:
            data.update(target=self.target, achieved=self.achieved)
        return data

    def __str__(self) -> str:
        changes = ''.join(f', {adjustment}' for adjustment in self.adjustments)
        ratio = self.achieved / self.target
        off = f'{self.deviation:+.2%}' if 0.1 < ratio < 10 else f'{ratio:.3g} times the budget'
        return f'{self.metric} {self.achieved:.6g} ({off}){changes}'


def label_of(name: str, strategy: str, factor: float) -> str:
    """Name for the files of a network: base model, strategy and factor."""
    return f'{name.lower()}_{strategy}_x{factor:g}'


class NotReachable(UsageError):
    """No network of a rule meets a budget.

    Attributes:
        below: The nearest network that costs less, or None.
        above: The nearest network that costs more, or None.
    """

    def __init__(self, message: str, below: Scaled | None, above: Scaled | None) -> None:
        super().__init__(message)
        self.below = below
        self.above = above
