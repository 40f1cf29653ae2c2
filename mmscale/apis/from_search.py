"""Reads a family of networks from a search's result.json, and scales it on."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from mmscale.arch import WIDTH_RULES, Arch, Rounding, Scaling, apply_scaling
from mmscale.arch.generalise import fit_rule
from mmscale.arch.json_files import read_json
from mmscale.arch.rules import ScalingRule
from mmscale.cost import CONVENTIONS, Cost, count
from mmscale.cost.matching import Constraints
from mmscale.search.result import SCHEMA

_METRICS = ('flops', 'params', 'acts')
_WIDTH_DIVISORS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class FoundFamily:
    """The family that a search found.

    Attributes:
        name: Name of the folder that holds the result.
        strategy: One Scaling per scaling stage, from 0 on.
        archs: Their networks, the base model first.
        metric: Cost that the budgets were about.
        convention: How the costs were counted.
        width_rule: Name of the width rule by which the strategy makes the networks.
        rounding: The rounding by which it does.
    """

    name: str
    strategy: tuple[Scaling, ...]
    archs: tuple[Arch, ...]
    metric: str
    convention: str
    width_rule: str
    rounding: Rounding

    @property
    def base(self) -> Arch:
        """The base model."""
        return self.archs[0]

    @property
    def cost_ratios(self) -> tuple[float, ...]:
        """True cost of every network relative to the base model's."""
        costs = [getattr(count(arch, self.convention), self.metric) for arch in self.archs]
        return tuple(cost / costs[0] for cost in costs)

    @property
    def constraints(self) -> Constraints:
        """The divisors that all networks of the family keep to."""
        return Constraints(self.rounding.width_divisor, self.rounding.resolution_divisor)

    def rule(self) -> ScalingRule:
        """The power rule fitted to the strategy, see :func:`mmscale.arch.generalise.fit_rule`."""
        return fit_rule(self.strategy, self.cost_ratios, f'fitted-{self.name}')


def _object(owner: str, value: object, keys: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f'{owner}: expected an object, got {value!r:.40}')
    missing = [key for key in keys if key not in value]
    if missing:
        raise ValueError(f'{owner}: missing key {", ".join(missing)}')
    return value


def _choice(owner: str, key: str, value: object, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f'{owner}: {key}={value!r} is not one of {", ".join(allowed)}')
    return str(value)


def _member(owner: str, value: object, convention: str) -> tuple[Scaling, Arch]:
    member = _object(owner, value, ('scaling', 'cost', 'arch'))
    multipliers = _object(f'{owner}: scaling', member['scaling'], tuple(Scaling().to_json()))
    try:
        scaling = Scaling(**multipliers)
        arch = Arch.from_json(member['arch'])
    except (TypeError, ValueError) as error:
        raise ValueError(f'{owner}: {error}') from None
    cost = asdict(count(arch, convention))
    said = _object(f'{owner}: cost', member['cost'], tuple(asdict(Cost())))
    for key, value in cost.items():
        if said[key] != value:
            raise ValueError(
                f'{owner}: cost.{key}={said[key]!r:.40}, but its arch has {value} '
                f'(convention {convention})'
            )
    return scaling, arch


def _making(strategy: tuple[Scaling, ...], archs: tuple[Arch, ...]) -> tuple[str, Rounding] | None:
    """The width rule and the rounding by which a strategy makes networks of the first one."""
    for rule, mode, divisor in product(WIDTH_RULES, ('ceil', 'nearest'), _WIDTH_DIVISORS):
        rounding = Rounding(mode, divisor)
        scaled = (apply_scaling(archs[0], scaling, rule, rounding) for scaling in strategy)
        if all(made == arch for made, arch in zip(scaled, archs, strict=True)):
            # Searches choose among even resolutions, say: what is scaled on stays one of those.
            step = math.gcd(*(arch.resolution for arch in archs))
            return rule, Rounding(mode, divisor, step)
    return None


def read_family(path: str | Path) -> FoundFamily:
    """Reads the family of a search's ``result.json``.

    Args:
        path: The file.

    Raises:
        ValueError: The file is not the result of a search, or its parts contradict each other.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f'{path} is not a file; it must be the result.json of a search')
    data = read_json(path)
    if isinstance(data, dict) and data.get('kind') == 'pareto':
        raise ValueError(f'{path}: a Pareto front is no family; search one with mmscale.MCEALoop')
    data = _object(str(path), data, ('schema', 'scaling_stages', 'settings'))
    if data['schema'] != SCHEMA:
        raise ValueError(f'{path}: schema={data["schema"]!r} is not supported, expected {SCHEMA}')
    convention = _choice(str(path), 'convention', data.get('convention', 'mmscale'), CONVENTIONS)
    settings = _object(f'{path}: settings', data['settings'], ())
    metric = _choice(str(path), 'settings.metric', settings.get('metric', 'flops'), _METRICS)
    stages = data['scaling_stages']
    if not isinstance(stages, list) or len(stages) < 2:
        raise ValueError(f'{path}: scaling_stages must be a list of 2 or more networks')
    members = [
        _member(f'{path}: scaling_stages[{j}]', stage, convention)
        for j, stage in enumerate(stages)
    ]
    strategy, archs = (tuple(part) for part in zip(*members, strict=True))
    if strategy[0] != Scaling():
        raise ValueError(f'{path}: scaling_stages[0].scaling must be 1, 1, 1: the base model')
    making = _making(strategy, archs)
    if making is None:
        raise ValueError(
            f'{path}: the scalings do not make the networks of scaling_stages of one base model; '
            f'those of mmscale.SeparateSearchLoop have one each'
        )
    return FoundFamily(path.resolve().parent.name, strategy, archs, metric, convention, *making)
