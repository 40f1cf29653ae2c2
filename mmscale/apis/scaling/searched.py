"""Reads a family of networks from a search's result.json, and scales it on."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from mmscale.apis.reports.run_files import result_origin
from mmscale.arch import WIDTH_RULES, Arch, Rounding, Scaling, apply_scaling
from mmscale.arch.checks import choice
from mmscale.arch.generalise import fit_rule
from mmscale.arch.origin import Origin
from mmscale.arch.rounding import ROUNDINGS
from mmscale.arch.rules import ScalingRule
from mmscale.cost import count
from mmscale.errors import UsageError
from mmscale.search.result_files import read_result

_METRICS = ('flops', 'params', 'acts')
_CHANNEL_DIVISORS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class FoundFamily:
    """The family that a search found.

    Attributes:
        name: Name of the folder that holds the result.
        strategy: One Scaling per scaling stage, from 0 on.
        archs: Their networks, the base model first.
        metric: Cost that the budget was about; flops where that was latency, which a family does
            not tell without the runtime model.
        convention: How the costs were counted.
        width_rule: Name of the width rule by which the strategy makes the networks.
        rounding: The rounding by which it does.
        origin: The config of the search and its data, as far as they are known.
    """

    name: str
    strategy: tuple[Scaling, ...]
    archs: tuple[Arch, ...]
    metric: str
    convention: str
    width_rule: str
    rounding: Rounding
    origin: Origin | None = None

    @property
    def base(self) -> Arch:
        """The base model."""
        return self.archs[0]

    @property
    def cost_ratios(self) -> tuple[float, ...]:
        """True cost of every network relative to the base model's."""
        costs = [getattr(count(arch, self.convention), self.metric) for arch in self.archs]
        return tuple(cost / costs[0] for cost in costs)

    def rule(self) -> ScalingRule:
        """The power rule fitted to the strategy, see :func:`mmscale.arch.generalise.fit_rule`."""
        return fit_rule(self.strategy, self.cost_ratios, f'fitted-{self.name}')


def _member(owner: str, member: dict[str, Any], convention: str) -> tuple[Scaling, Arch]:
    arch = Arch.from_json(member['arch'])
    for key, value in asdict(count(arch, convention)).items():
        if member['cost'][key] != value:
            raise UsageError(
                f'{owner}: cost.{key}={member["cost"][key]}, but its arch has {value} '
                f'(convention {convention})'
            )
    return Scaling(**member['scaling']), arch


def _making(strategy: tuple[Scaling, ...], archs: tuple[Arch, ...]) -> tuple[str, Rounding] | None:
    """The width rule and the rounding by which a strategy makes networks of the first one."""
    for rule, mode, divisor in product(WIDTH_RULES, ROUNDINGS, _CHANNEL_DIVISORS):
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
        path: The file, or its folder.

    Raises:
        ValueError: The file is not the result of a search, or its parts contradict each other.
    """
    path = Path(path)
    if path.is_dir():
        path /= 'result.json'
    if not path.is_file():
        raise UsageError(f'{path} is not a file; it must be the result.json of a search')
    data = read_result(path, ('scaling', 'cost', 'arch'))
    if data.get('kind') == 'pareto':
        raise UsageError(f'{path}: a Pareto front is no family; search one with mmscale.MCEA')
    convention = data.get('convention', 'mmscale')
    metric = data['settings'].get('metric', 'flops')
    if metric == 'latency':
        metric = 'flops'
    metric = choice(f'{path}: settings.metric', metric, _METRICS)
    stages = data['scaling_stages']
    if len(stages) < 2:
        raise UsageError(f'{path}: scaling_stages must be a list of 2 or more networks')
    members = [
        _member(f'{path}: scaling_stages[{j}]', stage, convention)
        for j, stage in enumerate(stages)
    ]
    strategy, archs = (tuple(part) for part in zip(*members, strict=True))
    if strategy[0] != Scaling():
        raise UsageError(f'{path}: scaling_stages[0].scaling must be 1, 1, 1: the base model')
    making = _making(strategy, archs)
    if making is None:
        raise UsageError(
            f'{path}: the scalings do not make the networks of scaling_stages of one base model; '
            f'those of mmscale.SeparateSearch have one each'
        )
    name, origin = path.resolve().parent.name, result_origin(path)
    return FoundFamily(name, strategy, archs, metric, convention, *making, origin)
