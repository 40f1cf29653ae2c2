"""Scales networks by rules: as the paper rounds, or to meet a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mmscale.apis.networks import build_network, holds_result, image_shape
from mmscale.apis.scaling.bases import BaseArch, find_base
from mmscale.apis.scaling.budgets import read_budget
from mmscale.apis.scaling.common import MODES
from mmscale.apis.scaling.rule_files import read_rules
from mmscale.apis.scaling.searched import FoundFamily, read_family
from mmscale.arch import Arch, Rounding, ScalingRule, fast_rule, scaling_rule
from mmscale.arch.checks import choice
from mmscale.arch.json_files import read_json
from mmscale.cost import Constraints, LatencyModel, NotReachable, Scaled
from mmscale.cost.scaled import label_of
from mmscale.errors import UsageError

if TYPE_CHECKING:
    from mmengine.config import Config
    from torch import nn

    from mmscale.apis.scaling.backbones import BaseConfig

# Networks that a runtime model is fitted on: acts, flops and params grow in different proportions.
_TIMED_BASES = ('RegNetY-200MF', 'MobileNetV2', 'ResNet-18')
_TIMED_RULES = ('d', 'w', 'r')

# What is sketched around the networks asked for.
_SWEEP_ALPHAS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_SWEEP_FACTORS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)


def find_rules(
    strategies: Sequence[str | ScalingRule], alphas: Sequence[float] = ()
) -> list[ScalingRule]:
    """Looks rules up.

    Args:
        strategies: Names as of :func:`mmscale.arch.scaling_rule`; rules; files
            ``result.json``, whose searched strategy is fitted by a rule; or files of rules, see
            :func:`mmscale.apis.scaling.rule_files.read_rules`.
        alphas: Other shares of fast scaling, in the place of ``dWr`` and ``dWr_gfix``.

    Raises:
        ValueError: A rule is unknown, a file is not a search's result, or there is no ``dWr``
            for the alphas.
    """
    rules = []
    for strategy in strategies:
        if isinstance(strategy, str) and strategy.endswith(('.json', '.py')):
            path = Path(strategy)
            is_rules = path.suffix == '.py' or (
                path.is_file() and not holds_result(read_json(path))
            )
            rules += read_rules(path) if is_rules else [read_family(path).rule()]
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


@dataclass(frozen=True)
class ScalingPlan:
    """What is to be scaled, and how; nothing is yet.

    Attributes:
        base: The base model.
        rules: The strategies.
        targets: Factors and the costs that they stand for.
        mode: ``reference`` or ``matched``.
        metric: What the targets are about.
        tolerance: Largest relative deviation from a target.
        constraints: Caps.
        latency_model: Predicts the latency.
    """

    base: BaseArch | BaseConfig
    rules: list[ScalingRule]
    targets: list[tuple[float, float]]
    mode: str
    metric: str
    tolerance: float
    constraints: Constraints
    latency_model: LatencyModel | None

    @property
    def labels(self) -> list[str]:
        """Names for the files of the networks."""
        return [
            label_of(self.base.name, rule.name, factor)
            for rule in self.rules
            for factor, _ in self.targets
        ]

    def run(
        self, on_unreachable: Callable[[str, NotReachable], None] | None = None
    ) -> list[Scaled]:
        """Scales by every strategy to every target.

        Args:
            on_unreachable: Is told of a strategy that cannot meet a budget, which is then left
                out; by default that is an error.

        Raises:
            NotReachable: A strategy cannot meet a budget.
        """
        networks = []
        for rule in self.rules:
            for factor, target in self.targets:
                try:
                    networks.append(self._make(rule, factor, target))
                except NotReachable as error:
                    if on_unreachable is None:
                        raise
                    on_unreachable(rule.name, error)
        return networks

    def _make(self, rule: ScalingRule, factor: float, target: float) -> Scaled:
        if self.mode == 'reference':
            return self.base.reference(rule, factor)
        made = self.base.matched(
            rule, factor, target, self.metric, self.tolerance, self.constraints,
            self.latency_model,
        )  # fmt: skip
        return replace(
            made, name=self.base.name, strategy=rule.name, factor=factor,
            convention=self.base.convention,
        )  # fmt: skip

    def sweep(self) -> list[Scaled]:
        """The base model under fast scaling of several alphas, in reference mode."""
        return [
            self.base.reference(fast_rule(alpha), factor)
            for alpha in _SWEEP_ALPHAS
            for factor in _SWEEP_FACTORS
        ]


def _said(budget: object) -> str:
    return f'budget={budget:g}' if isinstance(budget, (int, float)) else f'budget={budget!r:.60}'


def plan_scaling(
    base: str | Path | dict | Arch | FoundFamily,
    strategies: str | ScalingRule | Sequence[str | ScalingRule] | None = None,
    factors: float | Sequence[float] = (),
    alphas: float | Sequence[float] = (),
    mode: str | None = None,
    metric: str | None = None,
    budget: float | str | Mapping[str, float | str] | None = None,
    tolerance: float = 0.01,
    constraints: Constraints = Constraints(),  # noqa: B008 - immutable
    convention: str | None = None,
    latency_model: LatencyModel | None = None,
    name: str | None = None,
    channel_divisor: int | None = None,
    resolution_divisor: int | None = None,
    head_width: str = 'kept',
) -> ScalingPlan:
    """Checks what :func:`scale` is asked for, without scaling.

    Args:
        base: The base model, as :func:`mmscale.arch.get_arch` finds it; a config (``.py``) of an
            ArchNet or of a backbone with an adapter; or a searched family, see
            :func:`mmscale.apis.scaling.searched.read_family`, which is scaled on by its own
            strategy, see :class:`BaseOfFamily`.
        strategies: One or several, see :func:`find_rules`; by default ``dWr``.
        factors: Wanted multiples of the base model's cost, one or several.
        alphas: One or several, see :func:`find_rules`.
        mode: ``reference`` (default) or ``matched`` (default for a family, for a budget and for
            any other metric than flops).
        metric: What is to be multiplied: ``flops``, ``params``, ``acts`` or ``latency``; the
            rules of reference mode are about flops. By default ``flops``, for a family what its
            search's budgets were about.
        budget: Wanted cost, in the place of factors; matched mode alone. Or ``flops=4G`` and
            ``flops=4x``, see :func:`mmscale.apis.scaling.budgets.read_budget`.
        tolerance: Largest relative deviation from a budget, in matched mode.
        constraints: Caps that a network has to keep to, in matched mode.
        convention: See :func:`mmscale.cost.count`; by default ``pycls``. Backbones with an
            adapter are counted by ``mmscale``, a family as its search did.
        latency_model: Predicts the latency; needed where the metric is that.
        name: Name of the base model; by default its published or its file's name.
        channel_divisor: Channels become multiples of it, in matched mode; by default 8, for a
            family what its search rounded to.
        resolution_divisor: The resolution becomes a multiple of it, in matched mode; by default
            the network's total stride, for a family what its search rounded to.
        head_width: Whether attention heads keep their width (``kept``), so that their number is
            scaled, or may become a third narrower or wider (``free``).

    Raises:
        UsageError: A setting is not allowed, or the base model is not found.
    """
    if not isinstance(constraints, Constraints):
        raise UsageError(f'constraints={constraints!r:.60} must be mmscale.cost.Constraints')
    family = base if isinstance(base, FoundFamily) else None
    metric = metric or (family.metric if family else None)
    wanted = None if budget is None else read_budget(budget, metric)
    metric = metric or ('flops' if wanted is None else wanted.metric)
    solves = family is not None or budget is not None or metric != 'flops'
    mode = choice('mode', mode or ('matched' if solves else 'reference'), MODES)
    divisors = {'channel_divisor': channel_divisor, 'resolution_divisor': resolution_divisor}
    divisors = {key: value for key, value in divisors.items() if value is not None}
    if mode == 'reference':
        if metric != 'flops' or budget is not None:
            given = f'metric={metric}' if budget is None else _said(budget)
            raise UsageError(
                f'{given} needs mode=matched: reference mode does not solve for a cost'
            )
        if divisors or constraints != Constraints():
            raise UsageError(
                f'{divisors or constraints} needs mode=matched: reference mode rounds as the paper'
            )
    if family is not None and (strategies is not None or alphas or mode == 'reference'):
        raise UsageError(f"{family.name}: a family's own strategy is scaled on, in matched mode")
    Rounding(**divisors)  # checks them
    alphas = [alphas] if isinstance(alphas, (int, float)) else alphas
    if strategies is not None and not isinstance(strategies, (str, ScalingRule, Sequence)):
        raise UsageError(f'strategies={strategies!r:.60} must be names of rules')
    if family is not None:
        rules = [family.rule()]
    elif isinstance(strategies, (str, ScalingRule)):
        rules = find_rules([strategies], alphas)
    else:
        rules = find_rules(['dWr'] if strategies is None else strategies, alphas)
    factors = [factors] if isinstance(factors, (int, float)) else list(factors or ())
    found = find_base(base, name, convention, divisors, head_width)
    if not isinstance(found, BaseArch) and constraints != Constraints():
        raise UsageError(f'{found.recipe}: constraints are for Archs')
    for rule in rules:
        for factor in factors:
            rule.scaling(factor)  # refuses a bad one
    present = found.present(metric, latency_model)
    if wanted is not None:
        if factors:
            raise UsageError(f'{_said(budget)} and factor={factors[0]:g}: give one of them')
        target = wanted.value * present if wanted.is_multiple else wanted.value
        targets = [(target / present, target)]
    elif factors:
        targets = [(factor, factor * present) for factor in factors]
    else:
        raise UsageError('neither a factor nor a budget is given')
    return ScalingPlan(found, rules, targets, mode, metric, tolerance, constraints, latency_model)


def scale(
    base: str | Path | Mapping | Arch | Config | FoundFamily,
    strategies: str | ScalingRule | Sequence[str | ScalingRule] | None = None,
    factors: float | Sequence[float] = (),
    *,
    budget: float | str | Mapping[str, float | str] | None = None,
    mode: str | None = None,
    metric: str | None = None,
    alphas: float | Sequence[float] = (),
    tolerance: float = 0.01,
    constraints: Constraints = Constraints(),  # noqa: B008 - immutable
    convention: str | None = None,
    latency_model: LatencyModel | None = None,
    name: str | None = None,
    channel_divisor: int | None = None,
    resolution_divisor: int | None = None,
    head_width: str = 'kept',
) -> list[Scaled]:
    """Scales a network by every strategy to every factor.

    ``reference`` mode is the paper's: shapes are rounded once, the true cost is what comes out.
    ``matched`` mode solves for it, see :func:`mmscale.cost.matching.match`.

    Args:
        base: See :func:`plan_scaling`, as the other arguments.
        strategies: One or several; by default ``dWr``.
        factors: Wanted multiples of the base model's cost, one or several.
        budget: Wanted cost, in the place of factors: ``4e9``, ``flops=4G`` or ``flops=4x``.
        mode: ``reference`` or ``matched``; a budget or another metric than flops means the latter.
        metric: What is to be multiplied: ``flops``, ``params``, ``acts`` or ``latency``.
        alphas: Other members of ``dWr``.
        tolerance: Largest relative deviation from a budget, in matched mode.
        constraints: Caps, in matched mode.
        convention: See :func:`mmscale.cost.count`.
        latency_model: Predicts the latency.
        name: Of the base model.
        channel_divisor: Channels become multiples of it, in matched mode.
        resolution_divisor: The resolution becomes a multiple of it, in matched mode.
        head_width: Whether attention heads keep their width, ``kept`` or ``free``.

    Returns:
        Strategy by strategy, factor by factor.

    Raises:
        NotReachable: A strategy cannot meet a budget; the message names the nearest costs.
        UsageError: The config cannot be read, or a setting is not allowed.

    Example:
        >>> (network,) = scale('RegNetY-400MF', 'dWr', 4)
        >>> network.arch.depths, network.resolution
        ((1, 3, 7, 7), 240)
    """
    return plan_scaling(
        base, strategies, factors, alphas, mode, metric, budget, tolerance, constraints,
        convention, latency_model, name, channel_divisor, resolution_divisor, head_width,
    ).run()  # fmt: skip


def build_scaled(made: Scaled) -> tuple[nn.Module, tuple[int, int, int]]:
    """Builds a scaled network; returns it with the shape of its images."""
    if made.arch is not None:
        return build_network(made.arch), image_shape(made.arch)
    from mmscale.apis.networks import build_module

    return build_module(made.network.model, made.network.scope), made.network.image_shape


def networks_to_time(base: str | None = None) -> dict[str, Arch]:
    """The handful of networks that a runtime model is fitted on.

    Args:
        base: A network as of :func:`mmscale.apis.networks.find_network`; by default three.

    Returns:
        Every base and its scalings by ``d``, ``w`` and ``r`` at 2, by name.

    Raises:
        ValueError: There is no such network.
    """
    archs = {}
    for source in _TIMED_BASES if base is None else (base,):
        found = find_base(source, None, None, {})
        if not isinstance(found, BaseArch):
            raise UsageError(f'{found.name}: a runtime model is fitted on Archs alone')
        archs[found.name] = found.arch
        for network in scale(found.arch, _TIMED_RULES, 2.0, name=found.name):
            archs[network.label] = network.arch
    return archs
