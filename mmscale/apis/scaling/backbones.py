"""Scales mmpretrain configs of backbones that are no ArchNet, through their adapters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmscale.apis.networks import build_module, config_image_shape
from mmscale.apis.scaling.adapters import config_cost, find_adapter, scale_config
from mmscale.apis.scaling.common import MODES, backbone_of, label_of
from mmscale.apis.scaling.match_config import match_config
from mmscale.arch import ScalingRule
from mmscale.cost import Cost, LatencyModel
from mmscale.cost.matching import check_metric
from mmscale.errors import UsageError

if TYPE_CHECKING:
    from mmengine.config import Config
    from torch import nn


@dataclass(frozen=True)
class ScaledConfig:
    """A scaled model config, the way it was made, and its cost.

    Attributes:
        name: Name of the base model's config.
        strategy: Name of the rule.
        factor: Multiple of the base model's cost that was asked for.
        model: The ``model`` of the config.
        resolution: Side of its input.
        cost: Its cost, counted from the module built of it, convention ``mmscale``.
        metric: The cost that the factor is a multiple of.
        target: That multiple.
        achieved: The true cost in that metric.
        mode: ``reference`` or ``matched``.
    """

    name: str
    strategy: str
    factor: float
    model: dict[str, Any]
    resolution: int
    cost: Cost
    metric: str
    target: float
    achieved: float
    mode: str = 'reference'

    @property
    def label(self) -> str:
        """Name for files."""
        return label_of(self.name, self.strategy, self.factor)

    def _numbers(self, *paths: str) -> list[int | float]:
        """Settings of the backbone, those of a base model that does not say them left out."""
        numbers: list[int | float] = []
        for path in paths:
            value: Any = self.model['backbone']
            for key in path.split('.'):
                value = value.get(key) if isinstance(value, Mapping) else None
            if value is not None:
                numbers += value if isinstance(value, (list, tuple)) else [value]
        return numbers

    @property
    def depths(self) -> list[int]:
        """The depth settings of the backbone."""
        return self._numbers(*find_adapter(self.model['backbone']).depth)

    @property
    def widths(self) -> list[int | float]:
        """The width settings of the backbone."""
        return self._numbers(*find_adapter(self.model['backbone']).width)

    @property
    def group_widths(self) -> list[int] | None:
        """The group widths of the backbone, or None where it has none."""
        path = find_adapter(self.model['backbone']).group_width
        return self._numbers(path) if path else None

    @property
    def default_cost(self) -> Cost:
        """The cost in the default convention, which runtime models are fitted on."""
        return self.cost

    def build(self) -> tuple[nn.Module, tuple[int, int, int]]:
        """Builds the network; returns it with the shape of its images."""
        channels = self.model['backbone'].get('in_channels', 3)
        return build_module(self.model), (channels, self.resolution, self.resolution)

    def to_json(self) -> dict[str, Any]:
        """Returns the network as plain JSON data; target and achieved in matched mode alone."""
        data = {
            'name': self.name,
            'strategy': self.strategy,
            'factor': self.factor,
            'depths': self.depths,
            'widths': self.widths,
            'group_widths': self.group_widths,
            'resolution': self.resolution,
            **asdict(self.cost),
        }
        if self.mode == 'matched':
            data.update(target=self.target, achieved=self.achieved)
        return data


class BaseConfig:
    """The base model of a config.

    Args:
        path: Where the config is from.
        config: The config.
        name: Name of the base model; by default the file's.

    Raises:
        ValueError: There is no adapter for its backbone, or it cannot be built.
    """

    def __init__(self, path: str, config: Config, name: str | None = None) -> None:
        if backbone_of(config) is None:
            raise UsageError(f'{path}: the config has no model with a backbone')
        self.name = name or Path(path).stem
        self.model = config.model.to_dict()
        find_adapter(self.model['backbone'])
        self.resolution = config_image_shape(config, build_module(self.model, meta=True))[1]
        self.cost = config_cost(self.model, self.resolution)

    def present(self, metric: str, latency_model: LatencyModel | None = None) -> float:
        """The base model's own cost in a metric; the latency is predicted by a model.

        Raises:
            ValueError: There is no such metric, or no model for the latency.
        """
        check_metric(metric, latency_model)
        if metric == 'latency':
            return latency_model.predict(self.cost)
        return getattr(self.cost, metric)

    def as_scaled(self) -> ScaledConfig:
        """The base model itself, in the numbers that its adapter scales."""
        return self.scale(ScalingRule('base', 0, 0, 0), 1.0)

    def scale(
        self,
        rule: ScalingRule,
        factor: float,
        mode: str = 'reference',
        metric: str = 'flops',
        tolerance: float = 0.01,
        latency_model: LatencyModel | None = None,
    ) -> ScaledConfig:
        """Scales the base model by a rule.

        Args:
            rule: The rule.
            factor: Wanted multiple of the base model's cost.
            mode: ``reference`` rounds once, ``matched`` solves for the true cost.
            metric: ``flops``, ``params``, ``acts`` or ``latency``.
            tolerance: Largest relative deviation, in matched mode.
            latency_model: Predicts the latency; needed where the metric is that.

        Raises:
            NotReachable: The budget cannot be met.
            ValueError: A setting is not allowed.
        """
        if mode not in MODES:
            raise UsageError(f'mode={mode!r} is not one of {", ".join(MODES)}')
        check_metric(metric, latency_model)
        if mode == 'matched':
            found = match_config(
                self.model, rule, factor, metric, self.resolution, tolerance, latency_model
            )
            return ScaledConfig(
                self.name, rule.name, factor, found.config, found.resolution, found.cost,
                metric, found.target, found.achieved, mode,
            )  # fmt: skip
        model, resolution = scale_config(self.model, rule.scaling(factor), self.resolution)
        cost = config_cost(model, resolution)
        target = factor * self.cost.flops
        return ScaledConfig(
            self.name, rule.name, factor, model, resolution, cost, 'flops', target, cost.flops
        )
