"""Scales mmpretrain configs of backbones that are no ArchNet, through their adapters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmscale.apis.networks import build_module, config_image_shape
from mmscale.apis.scaling.adapters import (
    ScalableConfig,
    ScaledModel,
    check_head_width,
    scale_config,
)
from mmscale.apis.scaling.common import backbone_of, sides
from mmscale.arch import Scaling, ScalingRule, scaling_rule
from mmscale.arch.checks import number
from mmscale.cost import Constraints, Cost, LatencyModel, Scaled
from mmscale.cost.matching import solve
from mmscale.cost.scaled import value_of
from mmscale.errors import UsageError

if TYPE_CHECKING:
    from mmengine.config import Config


def _changes(base: Any, scaled: Any, path: str = '') -> Iterator[str]:
    """Settings of a scaled model that differ from the base model's."""
    if isinstance(base, Mapping) and isinstance(scaled, Mapping):
        for key, value in scaled.items():
            yield from _changes(base.get(key), value, f'{path}.{key}' if path else str(key))
    elif base != scaled:
        yield f'{path}={scaled!r:.60}' + ('' if base is None else f' (was {base!r:.60})')


def _scaled_cost(base: Mapping[str, Any], network: ScaledModel) -> Cost:
    """The cost of a scaled model.

    Raises:
        UsageError: It cannot be built or run; the message names what scaling changed.
    """
    try:
        return network.cost
    except UsageError as error:
        changes = ', '.join(_changes(base, network.model))
        raise UsageError(
            f'{error}; the settings that scaling changed do not go with the others: {changes}'
        ) from error


class _Models:
    """What a rule makes of a config, see :class:`mmscale.cost.matching.Candidates`."""

    expensive = True  # a network is built to be counted

    def __init__(
        self, base: ScalableConfig, rule: ScalingRule, metric: str, latency: LatencyModel | None
    ) -> None:
        self.base, self.rule, self.metric, self.latency = base, rule, metric, latency
        self._known: dict[str, ScaledModel] = {}

    def _network(self, backbone: dict[str, Any], shape: tuple[int, int]) -> ScaledModel:
        key = f'{shape} {backbone}'
        if key not in self._known:
            config = self.base.config_of(backbone, shape)
            self._known[key] = ScaledModel(config, shape, self.base.scope)
        return self._known[key]

    def at(self, factor: float) -> tuple[ScaledModel, Scaling]:
        scaling = self.rule.scaling(factor)
        return self._network(*self.base.scaled_backbone(scaling)), scaling

    def neighbours(
        self, network: ScaledModel, scaling: Scaling, reach: int
    ) -> Iterator[tuple[ScaledModel, tuple[object, ...]]]:
        for beside in self.base.one_step_beside(scaling):
            yield self._network(*beside), ()

    def cost(self, network: ScaledModel) -> tuple[Cost, float]:
        cost = _scaled_cost(self.base.config, network)
        return cost, value_of(cost, self.metric, self.latency)

    def alike(self, one: ScaledModel, other: ScaledModel) -> bool:
        return one == other


def match_config(
    config: Mapping[str, Any],
    rule: str | ScalingRule,
    factor: float,
    metric: str = 'flops',
    resolution: int | Sequence[int] = 224,
    tolerance: float = 0.1,
    latency_model: LatencyModel | None = None,
    head_width: str = 'kept',
    scope: str = 'mmpretrain',
) -> Scaled:
    """Scales a config by a rule so that its true cost is a multiple of the base model's.

    Cost grows with the rule's factor in steps, as numbers are rounded. The factor is bisected to
    the step at the budget; if both sides are too far off, one step of the resolution, of one
    depth or of one width is added to them or taken away. Where heads keep their width, steps of
    the width are large: there what lies between the layers of a transformer's MLP may become up
    to a quarter narrower or wider.

    Args:
        config: See :func:`mmscale.apis.scaling.adapters.scale_config`.
        rule: A rule or its name, such as ``dWr``.
        factor: Wanted multiple of the cost.
        metric: ``flops``, ``params``, ``acts`` or ``latency``.
        resolution: Side of the base model's input, or its height and width.
        tolerance: How far off the cost may be, relative to the budget.
        latency_model: Predicts the latency.
        head_width: See :class:`mmscale.apis.scaling.adapters.ScalableConfig`.
        scope: Package that knows the types which say none.

    Returns:
        The network, a :class:`mmscale.apis.scaling.adapters.ScaledModel`, and its cost.

    Raises:
        NotReachable: No factor found comes that near; the message names the nearest costs.
        ValueError: A setting is not allowed, or there is no adapter for the backbone.
    """
    number('tolerance', tolerance, above=0, below=1)
    rule = scaling_rule(rule)
    rule.scaling(factor)  # checks the factor
    value_of(Cost(), metric, latency_model)  # checks the metric
    base = ScalableConfig(config, resolution, head_width, scope)
    present = value_of(ScaledModel(base.config, base.shape, scope).cost, metric, latency_model)
    models = _Models(base, rule, metric, latency_model)
    return solve(models, metric, factor * present, tolerance, factor)


class BaseConfig:
    """The base model of a config.

    Args:
        path: Where the config is from.
        config: The config.
        name: Name of the base model; by default the file's.
        head_width: See :class:`mmscale.apis.scaling.adapters.ScalableConfig`.

    Raises:
        ValueError: There is no adapter for its backbone, or it cannot be built.
    """

    convention = 'mmscale'

    def __init__(
        self, path: str, config: Config, name: str | None = None, head_width: str = 'kept'
    ) -> None:
        if backbone_of(config) is None:
            raise UsageError(f'{path}: the config has no model with a backbone')
        self.recipe = path
        self.name = name or Path(path).stem
        model = config.model.to_dict()
        scope = config.get('default_scope') or 'mmpretrain'
        check_head_width(model['backbone'], head_width, scope)
        shape = config_image_shape(config, build_module(model, scope, meta=True))
        self.head_width = head_width
        self.network = ScaledModel(model, (shape[1], shape[2]), scope)
        self.cost = self.network.cost

    def present(self, metric: str, latency_model: LatencyModel | None = None) -> float:
        """The base model's own cost in a metric; the latency is predicted by a model.

        Raises:
            ValueError: There is no such metric, or no model for the latency.
        """
        return value_of(self.cost, metric, latency_model)

    def unscaled(self) -> Scaled:
        """The base model itself, in the numbers that its adapter scales."""
        return self.reference(ScalingRule('base', 0, 0, 0), 1.0)

    def reference(self, rule: ScalingRule, factor: float) -> Scaled:
        """Scales the base model, rounding once."""
        scaling, base = rule.scaling(factor), self.network
        model, resolution = scale_config(
            base.model, scaling, base.shape, self.head_width, base.scope
        )
        network = ScaledModel(model, sides(resolution), base.scope)
        cost = _scaled_cost(base.model, network)
        return Scaled(
            network, scaling, factor, cost, 'flops', factor * self.cost.flops, cost.flops,
            name=self.name, strategy=rule.name, factor=factor,
        )  # fmt: skip

    def matched(
        self,
        rule: ScalingRule,
        factor: float,
        target: float,
        metric: str,
        tolerance: float,
        constraints: Constraints,
        latency_model: LatencyModel | None,
    ) -> Scaled:
        """Scales the base model so that its true cost is a multiple of its own.

        Raises:
            NotReachable: The budget cannot be met.
            ValueError: A setting is not allowed.
        """
        base = self.network
        return match_config(
            base.model, rule, factor, metric, base.shape, tolerance, latency_model,
            self.head_width, base.scope,
        )  # fmt: skip
