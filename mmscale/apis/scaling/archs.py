"""Scales networks by rules: as the paper rounds, or to meet a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmscale.apis.networks import build_network, find_arch, image_shape
from mmscale.apis.scaling.common import MODES, backbone_of, label_of
from mmscale.apis.scaling.searched import FoundFamily, read_family
from mmscale.arch import (
    PYCLS_ROUNDING,
    Arch,
    Scaling,
    ScalingRule,
    apply_scaling,
    get_arch,
    group_widths,
    preset_name,
    scaling_rule,
)
from mmscale.cost import Cost, LatencyModel, count
from mmscale.cost.matching import Constraints, Matched, NotReachable, check_metric, match
from mmscale.errors import UsageError
from mmscale.launch.command_line import read_config
from mmscale.quiet import quiet_imports

if TYPE_CHECKING:
    from mmengine.config import Config
    from torch import nn

    from mmscale.apis.scaling.backbones import ScaledConfig

# Networks that a runtime model is fitted on: acts, flops and params grow in different proportions.
_TIMED_BASES = ('RegNetY-200MF', 'MobileNetV2', 'ResNet-18')
_TIMED_RULES = ('d', 'w', 'r')


@dataclass(frozen=True)
class ScaledNetwork:
    """A network, the way it was made, and its cost.

    Attributes:
        name: Name of the base model.
        strategy: Name of the rule.
        factor: Multiple of the base model's cost that was asked for.
        arch: The network.
        cost: Its cost.
        metric: The cost that the factor is a multiple of.
        target: That multiple.
        achieved: The true cost in that metric.
        matched: How the budget was met; None in reference mode.
    """

    name: str
    strategy: str
    factor: float
    arch: Arch
    cost: Cost
    metric: str
    target: float
    achieved: float
    matched: Matched | None = None

    @property
    def label(self) -> str:
        """Name for files."""
        return label_of(self.name, self.strategy, self.factor)

    @property
    def depths(self) -> tuple[int, ...]:
        """Blocks of every network stage."""
        return self.arch.depths

    @property
    def widths(self) -> tuple[int, ...]:
        """Output channels of every network stage."""
        return self.arch.widths

    @property
    def group_widths(self) -> tuple[int, ...] | None:
        """Channels per group of every network stage, or None where there are no groups."""
        return group_widths(self.arch)

    @property
    def resolution(self) -> int:
        """Side of the input, in pixels."""
        return self.arch.resolution

    @property
    def default_cost(self) -> Cost:
        """The cost in the default convention, which runtime models are fitted on."""
        return count(self.arch)

    def build(self) -> tuple[nn.Module, tuple[int, int, int]]:
        """Builds the network; returns it with the shape of its images."""
        return build_network(self.arch), image_shape(self.arch)

    def to_json(self) -> dict[str, Any]:
        """Returns the network as plain JSON data; target and achieved in matched mode alone."""
        widths = self.group_widths
        data = {
            'name': self.name,
            'strategy': self.strategy,
            'factor': self.factor,
            'depths': list(self.depths),
            'widths': list(self.widths),
            'group_widths': None if widths is None else list(widths),
            'resolution': self.resolution,
            **asdict(self.cost),
        }
        if self.matched is not None:
            data.update(target=self.target, achieved=self.achieved)
        return data


def find_rules(
    strategies: Sequence[str | ScalingRule], alphas: Sequence[float] = ()
) -> list[ScalingRule]:
    """Looks rules up.

    Args:
        strategies: Names as of :func:`mmscale.arch.scaling_rule`; rules; or files
            ``result.json``, whose searched strategy is fitted by a rule.
        alphas: Other members of the fast family, in the place of ``dWr`` and ``dWr_gfix``.

    Raises:
        ValueError: A rule is unknown, a file is not a search's result, or there is no ``dWr``
            for the alphas.
    """
    rules = []
    for strategy in strategies:
        if isinstance(strategy, str) and strategy.endswith('.json'):
            rules.append(read_family(strategy).rule())
        elif alphas and (isinstance(strategy, ScalingRule) or strategy.startswith('dWr')):
            rules += [scaling_rule(strategy, alpha) for alpha in alphas]
        else:
            rules.append(scaling_rule(strategy))
    if alphas and not any(str(strategy).startswith('dWr') for strategy in strategies):
        raise UsageError(
            f'alpha={alphas[0]} is of dWr and dWr_gfix; strategies are '
            f'{", ".join(map(str, strategies))}'
        )
    return rules


def arch_of(config: Config) -> Arch | None:
    """The Arch of a config's backbone, or None if that is no ArchNet.

    Raises:
        ValueError: The backbone's Arch is not one.
    """
    backbone = backbone_of(config)
    if backbone is None or backbone.get('type') != 'mmscale.ArchNet':
        return None
    with quiet_imports():
        from mmscale.models.backbones.arch_net import scaled_arch

    return scaled_arch(backbone.get('arch'), backbone.get('scaling'))


def cost_of(
    arch: Arch, metric: str, convention: str, latency_model: LatencyModel | None = None
) -> float:
    """One of a network's costs.

    Args:
        arch: The network.
        metric: ``flops``, ``params``, ``acts`` or ``latency`` (predicted milliseconds).
        convention: See :func:`mmscale.cost.count`.
        latency_model: Predicts the latency; needed for that alone.

    Raises:
        ValueError: There is no such metric, or no model for the latency.
    """
    check_metric(metric, latency_model)
    if metric != 'latency':
        return getattr(count(arch, convention), metric)
    # The runtime model is fitted on costs of the default convention.
    return latency_model.predict(count(arch))


def _targets(
    rules: Sequence[ScalingRule], factors: Sequence[float], budget: float | None, present: float
) -> list[tuple[float, float]]:
    """Factors and the costs that they stand for; a budget is a factor that comes out of it."""
    for rule in rules:
        for factor in factors:
            rule.scaling(factor)  # refuses a bad one
    if budget is not None:
        number = isinstance(budget, (int, float)) and not isinstance(budget, bool)
        if not number or not 0 < budget < math.inf:
            raise UsageError(f'budget={budget!r:.60} must be a number above 0')
        if factors:
            raise UsageError(f'budget={budget:g} and factor={factors[0]:g}: give one of them')
        return [(budget / present, budget)]
    if not factors:
        raise UsageError('neither a factor nor a budget is given')
    return [(factor, factor * present) for factor in factors]


def scale(
    base: str | Path | dict | Arch,
    strategies: str | ScalingRule | Sequence[str | ScalingRule] = 'dWr',
    factors: float | Sequence[float] = (),
    alphas: float | Sequence[float] = (),
    mode: str = 'reference',
    metric: str = 'flops',
    budget: float | None = None,
    tolerance: float = 0.01,
    constraints: Constraints = Constraints(),  # noqa: B008 - immutable
    convention: str = 'pycls',
    latency_model: LatencyModel | None = None,
    name: str | None = None,
) -> list[ScaledNetwork] | list[ScaledConfig]:
    """Scales a network by every strategy to every factor.

    ``reference`` mode is the paper's: shapes are rounded once, the true cost is what comes out.
    ``matched`` mode solves for it, see :func:`mmscale.cost.matching.match`.

    Args:
        base: The base model, as :func:`mmscale.arch.get_arch` finds it; or a config (``.py``) of
            an ArchNet or of a backbone with an adapter.
        strategies: One or several, see :func:`find_rules`.
        factors: Wanted multiples of the base model's cost, one or several.
        alphas: One or several, see :func:`find_rules`.
        mode: ``reference`` or ``matched``.
        metric: What is to be multiplied: ``flops``, ``params``, ``acts`` or ``latency``; the
            rules of reference mode are about flops.
        budget: Wanted cost, in the place of factors; matched mode alone.
        tolerance: Largest relative deviation from a budget, in matched mode.
        constraints: What a network has to keep to, in matched mode.
        convention: See :func:`mmscale.cost.count`; backbones with an adapter are counted by
            ``mmscale``.
        latency_model: Predicts the latency; needed where the metric is that.
        name: Name of the base model; by default its published or its file's name.

    Returns:
        Strategy by strategy, factor by factor.

    Raises:
        NotReachable: A strategy cannot meet a budget; the message names the nearest costs.
        UsageError: The config cannot be read.
        ValueError: A setting is not allowed.
    """
    if mode not in MODES:
        raise UsageError(f'mode={mode!r:.60} is not one of {", ".join(MODES)}')
    if mode == 'reference' and (metric != 'flops' or budget is not None):
        given = f'metric={metric}' if budget is None else f'budget={budget:g}'
        raise UsageError(f'{given} needs mode=matched: reference mode does not solve for a cost')
    if mode == 'reference' and constraints != Constraints():
        raise UsageError(f'{constraints} needs mode=matched: reference mode rounds as the paper')
    alphas = [alphas] if isinstance(alphas, (int, float)) else alphas
    rules = find_rules(
        [strategies] if isinstance(strategies, (str, ScalingRule)) else strategies, alphas
    )
    factors = [factors] if isinstance(factors, (int, float)) else factors
    named = None if isinstance(base, (Arch, dict)) else str(base)
    if name is None:
        name = 'arch' if named is None else preset_name(named) or Path(named).stem
    if named is not None and named.endswith('.py'):
        from mmscale.apis.scaling.backbones import BaseConfig

        config = read_config(named)
        base = arch_of(config)
        if base is None:
            if constraints != Constraints():
                raise UsageError(f'{named}: constraints are for Archs')
            model = BaseConfig(named, config, name)
            targets = _targets(rules, factors, budget, model.present(metric, latency_model))
            return [
                model.scale(rule, factor, mode, metric, tolerance, latency_model)
                for rule in rules
                for factor, _ in targets
            ]
    arch = get_arch(base)
    present = cost_of(arch, metric, convention, latency_model)
    targets = _targets(rules, factors, budget, present)
    networks = []
    for rule in rules:
        for factor, target in targets:
            if mode == 'matched':
                matched = match(
                    arch,
                    rule.scaling,
                    target,
                    metric,
                    tolerance,
                    constraints,
                    convention,
                    latency_model=latency_model,
                )
                networks.append(_matched_network(name, rule.name, factor, matched))
            else:
                scaled = apply_scaling(arch, rule.scaling(factor), 'pycls', PYCLS_ROUNDING)
                cost = count(scaled, convention)
                networks.append(
                    ScaledNetwork(
                        name, rule.name, factor, scaled, cost, metric, target, cost.flops
                    )
                )
    return networks


def _matched_network(name: str, strategy: str, factor: float, matched: Matched) -> ScaledNetwork:
    return ScaledNetwork(
        name,
        strategy,
        factor,
        matched.arch,
        matched.cost,
        matched.metric,
        matched.target,
        matched.achieved,
        matched,
    )


def scale_family(
    family: FoundFamily,
    factors: Sequence[float] = (),
    metric: str | None = None,
    budget: float | None = None,
    tolerance: float = 0.01,
    constraints: Constraints | None = None,
    latency_model: LatencyModel | None = None,
) -> list[ScaledNetwork]:
    """Scales a searched family on: its strategy fitted by a rule, and extrapolated.

    Depth and width are what the rule gives at the factor, rounded as the search rounded; the
    resolution is solved for, so that the true cost meets the budget, with the adjustments of
    :func:`mmscale.cost.matching.match`. Where that is not possible, all three are solved for
    along the rule, as in matched mode.

    Args:
        family: The family, see :func:`mmscale.apis.scaling.searched.read_family`.
        factors: Wanted multiples of the base model's cost.
        metric: What is to be multiplied; by default what the search's budgets were about.
        budget: Wanted cost, in the place of factors.
        tolerance: Largest relative deviation from the budget.
        constraints: What a network has to keep to; by default the family's own divisors.
        latency_model: Predicts the latency; needed where the metric is that.

    Raises:
        NotReachable: A budget cannot be met; the message names the nearest costs.
        ValueError: A setting is not allowed.
    """
    metric = metric or family.metric
    constraints = constraints or family.constraints
    rule = family.rule()
    present = cost_of(family.base, metric, family.convention, latency_model)
    networks = []
    for factor, target in _targets([rule], factors, budget, present):
        fitted = rule.scaling(factor)

        def with_resolution(solved: float, fitted: Scaling = fitted) -> Scaling:
            return Scaling(fitted.depth, fitted.width, solved**0.5)

        def solve(scaling_of: Callable[[float], Scaling], target: float = target) -> Matched:
            return match(
                family.base,
                scaling_of,
                target,
                metric,
                tolerance,
                constraints,
                family.convention,
                family.width_rule,
                family.rounding.mode,
                latency_model,
            )

        try:
            matched = solve(with_resolution)
        except NotReachable:
            matched = solve(rule.scaling)
        networks.append(_matched_network(family.name, rule.name, factor, matched))
    return networks


def networks_to_time(base: str | None = None) -> dict[str, Arch]:
    """The handful of networks that a runtime model is fitted on.

    Args:
        base: A network as of :func:`mmscale.arch.get_arch`; by default three.

    Returns:
        Every base and its scalings by ``d``, ``w`` and ``r`` at 2, by name.

    Raises:
        ValueError: There is no such network.
    """
    archs = {}
    for source in _TIMED_BASES if base is None else (base,):
        name, arch = find_arch(source)
        archs[name] = arch
        for network in scale(arch, _TIMED_RULES, 2.0, name=name):
            archs[network.label] = network.arch
    return archs
