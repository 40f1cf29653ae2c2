"""Base models to scale: Archs, searched families, and what a user named as one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mmscale.apis.networks import Network, find_network
from mmscale.apis.scaling.common import HEAD_WIDTHS, backbone_of
from mmscale.apis.scaling.searched import FoundFamily
from mmscale.arch import PYCLS_ROUNDING, Arch, Rounding, Scaling, ScalingRule, apply_scaling
from mmscale.arch.checks import choice
from mmscale.arch.origin import Origin
from mmscale.config_parts import type_name
from mmscale.cost import Constraints, LatencyModel, NotReachable, Scaled, count, match
from mmscale.cost.scaled import value_of
from mmscale.errors import UsageError, one_line
from mmscale.quiet import quiet_imports

if TYPE_CHECKING:
    from mmengine.config import Config

    from mmscale.apis.scaling.backbones import BaseConfig


def arch_of(config: Config) -> Arch | None:
    """The Arch of a config's backbone, or None if that is no ArchNet.

    Raises:
        ValueError: The backbone's Arch is not one.
    """
    backbone = backbone_of(config)
    if backbone is None or type_name(backbone) != 'ArchNet':
        return None
    with quiet_imports():
        from mmscale.models.backbones.arch_net import scaled_arch

    return scaled_arch(backbone.get('arch'), backbone.get('scaling'))


@dataclass(frozen=True)
class BaseArch:
    """An Arch to scale.

    Attributes:
        name: Its name.
        arch: The base model.
        convention: How costs are counted, see :func:`mmscale.cost.count`.
        divisors: ``channel_divisor`` and ``resolution_divisor`` of matched mode, those that are
            not the defaults.
        recipe: The config that it is from, if it is from one.
        origin: What its file remembers of the config that it was found by.
    """

    name: str
    arch: Arch
    convention: str = 'pycls'
    divisors: dict[str, int] = field(default_factory=dict)
    recipe: str | None = None
    origin: Origin | None = None

    def present(self, metric: str, latency_model: LatencyModel | None = None) -> float:
        """The base model's own cost in a metric; the latency is predicted by a model.

        Raises:
            ValueError: There is no such metric, or no model for the latency.
        """
        # The runtime model is fitted on costs of the default convention.
        convention = 'mmscale' if metric == 'latency' else self.convention
        return value_of(count(self.arch, convention), metric, latency_model)

    def unscaled(self) -> Scaled:
        """The base model itself."""
        cost = count(self.arch, self.convention)
        return Scaled(
            self.arch, Scaling(), 1.0, cost, 'flops', cost.flops, cost.flops,
            name=self.name, strategy='base', convention=self.convention,
        )  # fmt: skip

    def reference(self, rule: ScalingRule, factor: float) -> Scaled:
        """Scales the base model as the paper does, rounding once."""
        scaling = rule.scaling(factor)
        arch = apply_scaling(self.arch, scaling, 'pycls', PYCLS_ROUNDING)
        cost, target = count(arch, self.convention), factor * self.present('flops')
        return Scaled(
            arch, scaling, factor, cost, 'flops', target, cost.flops,
            name=self.name, strategy=rule.name, factor=factor, convention=self.convention,
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
        """Scales the base model so that its true cost meets a target.

        Raises:
            NotReachable: The target cannot be met.
            ValueError: A setting is not allowed.
        """
        divisors = {'channel_divisor': 8, 'resolution_divisor': self.arch.strides[-1]}
        rounding = Rounding('nearest', strict=True, **{**divisors, **self.divisors})
        return match(
            self.arch, rule.scaling, target, metric, tolerance, constraints, self.convention,
            rounding=rounding, latency_model=latency_model,
        )  # fmt: skip


@dataclass(frozen=True)
class BaseOfFamily(BaseArch):
    """The base model of a searched family, to scale the family on.

    Depth and width are what the fitted rule gives at the factor, rounded as the search rounded;
    the resolution is solved for, so that the true cost meets the budget, with the adjustments of
    :func:`mmscale.cost.matching.match`. Where that is not possible, all three are solved for
    along the rule, as in matched mode.
    """

    family: FoundFamily | None = None

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
        """See :meth:`BaseArch.matched`."""
        fitted = rule.scaling(factor)
        rounding = replace(self.family.rounding, **self.divisors)

        def with_resolution(solved: float) -> Scaling:
            return Scaling(fitted.depth, fitted.width, solved**0.5)

        def solve(scaling_of: Callable[[float], Scaling]) -> Scaled:
            return match(
                self.arch, scaling_of, target, metric, tolerance, constraints, self.convention,
                self.family.width_rule, rounding, latency_model,
            )  # fmt: skip

        try:
            return solve(with_resolution)
        except NotReachable:
            return solve(rule.scaling)


def _timm_arch(network: Network) -> Arch:
    """The Arch of a module that is timm's.

    Raises:
        UsageError: None is known.
    """
    from mmscale.models.timm_networks import from_timm

    try:
        return from_timm(network.build())[0]
    except (ImportError, ValueError) as error:
        raise UsageError(
            f'{network.name} cannot be scaled: it is neither an Arch nor the model of a config, '
            f'nor a network of timm that an Arch is known of ({one_line(error):.120})'
        ) from None


def _refuse_heads(name: str, head_width: str) -> None:
    if choice('head_width', head_width, HEAD_WIDTHS) != 'kept':
        raise UsageError(f'head_width={head_width}: {name} has no attention heads')


def find_base(
    source: str | Path | dict | Arch | FoundFamily,
    name: str | None,
    convention: str | None,
    divisors: dict[str, int],
    head_width: str = 'kept',
) -> BaseArch | BaseConfig:
    """Finds the base model that a user named.

    Args:
        source: See :func:`mmscale.apis.scaling.archs.plan_scaling`, as the other arguments.
        name: Name of the base model.
        convention: How costs are counted.
        divisors: Of channels and resolution, those that are not the defaults.
        head_width: Whether attention heads keep their width.

    Raises:
        UsageError: There is none, or a setting does not go with it.
    """
    if isinstance(source, FoundFamily):
        if convention is not None:
            raise UsageError(f'convention={convention}: a family keeps that of its search')
        _refuse_heads(source.name, head_width)
        return BaseOfFamily(
            name or source.name, source.base, source.convention, divisors, origin=source.origin,
            family=source,
        )  # fmt: skip
    network = find_network(source)
    name, arch, recipe = name or network.name, network.arch, None
    if network.config is not None:
        recipe, arch = network.source, arch_of(network.config)
        if arch is None:
            from mmscale.apis.scaling.backbones import BaseConfig

            if divisors:
                raise UsageError(f'{name}: {", ".join(divisors)}: constraints are for Archs')
            if convention not in (None, 'mmscale'):
                raise UsageError(
                    f'{name}: convention={convention}: backbones with an adapter are counted by '
                    'mmscale'
                )
            return BaseConfig(network.source or name, network.config, name, head_width)
    if arch is None:
        arch = _timm_arch(network)
    _refuse_heads(name, head_width)
    return BaseArch(name, arch, convention or 'pycls', divisors, recipe, network.origin)
