"""What a search would do: its space, what the budgets admit, how much there is to evaluate."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmscale.arch import Arch, Scaling, SearchSpace
from mmscale.arch.spoken import shown_number
from mmscale.cost import Cost, CostTable
from mmscale.search.distinct import distinct_scalings
from mmscale.search.family import FamilyFitness
from mmscale.search.limits import shown
from mmscale.search.uniform import sample_base_models
from mmscale.tables import Printed, make_table

if TYPE_CHECKING:
    from rich.table import Table

# Base models that shares are estimated on: all, and those of them within the base budget.
_SAMPLE = 200_000
_BATCH = 10_000
_MOST_ON_BUDGET = 4_000


@dataclass(frozen=True)
class Share:
    """A share of base models, estimated on a sample.

    Attributes:
        value: Mean over the sample.
        error: Standard error of it; of a share of yes and no the binomial one.
        sample: Number of base models in the sample.
    """

    value: float
    error: float
    sample: int

    @classmethod
    def of(cls, values: NDArray) -> Share | None:
        """The mean of the values of a sample, None if it is empty."""
        if not len(values):
            return None
        return cls(float(np.mean(values)), float(np.std(values) / len(values) ** 0.5), len(values))

    def __str__(self) -> str:
        error = f' ± {100 * self.error:.1g}' if self.error else ''
        return f'{100 * self.value:.3g}{error} %'


@dataclass(frozen=True)
class NetworkProfile:
    """A network at the edge or in the middle of a scaling stage.

    Attributes:
        resolution: Side of the input, in pixels.
        blocks: Number of blocks.
        cost: Its cost.
    """

    resolution: int
    blocks: int
    cost: Cost

    @classmethod
    def of(cls, arch: Arch, table: CostTable) -> NetworkProfile:
        """The profile of an Arch, by the costs that budgets are about."""
        return cls(arch.resolution, len(arch.blocks), table.cost(arch))


@dataclass(frozen=True)
class ScalingStageProfile:
    """What a scaling stage offers, and what of it the budget admits.

    Attributes:
        scaling_stage: From 0 on.
        weight: Weight of its score in the fitness; None without a family.
        nominal_scalings: Scalings that the config spells out.
        distinct_scalings: Those of them that differ for some base model.
        smallest: Smallest blocks, widths, depths and multipliers.
        middle: Middle choice of every gene and multiplier.
        largest: Largest blocks, widths, depths and multipliers.
        admitted: Of the pairs of a base model within its budgets and caps and a distinct scaling,
            how many meet those of this scaling stage; of scaling stage 0, how many base models
            of the space meet theirs. None without a budget or such a base model.
        scalable: Of the base models within theirs, how many have a scaling that does.
    """

    scaling_stage: int
    weight: float | None
    nominal_scalings: int
    distinct_scalings: int
    smallest: NetworkProfile
    middle: NetworkProfile
    largest: NetworkProfile
    admitted: Share | None
    scalable: Share | None


@dataclass(frozen=True, repr=False)
class SearchProfile(Printed):
    """What a search would do, before it does anything; prints its tables.

    Attributes:
        space: What there is to choose from, as the space prints it.
        convention: Of the costs.
        base_models: Distinct base models.
        families: Base models times nominal strategies.
        budget: Of the base model in units of `metric`, None without one.
        metric: Of the budget, None without one.
        tolerance: Largest relative deviation from any budget, None without one.
        limits: Further budgets, and caps, a text each.
        stages: Per scaling stage.
        scalable: Of the base models within the base budget, how many have a scaling in every
            scaling stage.
        most_evaluations: Upper bound of the distinct Archs that the schedule evaluates.
        most_flops: About what these sum to, for one image each; None without a budget.
    """

    space: str
    convention: str
    base_models: int
    families: int
    budget: float | None
    metric: str | None
    tolerance: float | None
    limits: tuple[str, ...]
    stages: tuple[ScalingStageProfile, ...]
    scalable: Share | None
    most_evaluations: int
    most_flops: float | None

    def to_json(self) -> dict[str, Any]:
        """Returns the profile as plain JSON data, without the printed space."""
        data = asdict(self)
        del data['space']
        return data

    def renderables(self) -> list[Table | str]:
        """What there is to search, the networks at its ends, and what the budgets admit."""
        is_scaled = len(self.stages) > 1
        scalings, networks = [], []
        for stage in self.stages:
            weight = None if stage.weight is None else f'{stage.weight:g}'
            shares = (share or '-' for share in (stage.admitted, stage.scalable))
            counts = (stage.nominal_scalings, stage.distinct_scalings)
            scalings.append((stage.scaling_stage, weight, *counts, *shares))
            for name in ('smallest', 'middle', 'largest'):
                network = getattr(stage, name)
                cost = (f'{getattr(network.cost, key):,}' for key in ('flops', 'params', 'acts'))
                title = f'{stage.scaling_stage} {name}' if is_scaled else name
                networks.append((title, network.resolution, network.blocks, *cost))
            networks.append(None)
        number = f'{self.base_models:,} networks'
        if is_scaled:
            number = f'{self.base_models:,} base models, {shown_number(self.families)} families'
        found: list[Table | str] = [
            self.space,
            number,
            make_table(
                f'networks, costs by convention {self.convention}',
                ('scaling stage' if is_scaled else '', 'px', 'blocks', 'flops', 'params', 'acts'),
                networks if is_scaled else networks[:-1],
            ),
        ]
        if is_scaled:
            found.append(
                make_table(
                    'scalings, and how many of them the budgets admit',
                    ('scaling stage', 'weight', 'nominal', 'distinct', 'admitted', 'scalable'),
                    scalings,
                )
            )
        return [*found, *self._lines()]

    def _lines(self) -> list[str]:
        """What the budgets are and admit, and what the schedule needs."""
        is_scaled = len(self.stages) > 1
        lines = []
        if self.budget is not None:
            budget = f'{self.budget:,.0f} {self.metric}'
            if self.metric == 'latency':
                budget = shown(self.budget, self.metric)
            budget += f' within {self.tolerance:.3g}'
            lines.append(
                f'budget of the base model: {budget}, of scaling stage j: 2^j times the base model'
                if is_scaled
                else f'budget: {budget}'
            )
        lines += self.limits
        if not is_scaled and self.stages[0].admitted is not None:
            lines.append(f'networks within it: {self.stages[0].admitted}')
        if is_scaled and self.scalable is not None:
            lines.append(
                f'base models within it that scale to all scaling stages: {self.scalable} '
                f'(of {self.scalable.sample:,} sampled)'
            )
        lines.append(f'the schedule evaluates at most {self.most_evaluations:,} networks')
        if self.most_flops is not None:
            lines[-1] += f', about {self.most_flops:.3g} flops for one image each'
        return lines


def _middle(space: SearchSpace, scaling_stage: int) -> Arch:
    scaling = Scaling()
    if scaling_stage:
        choices = space.scaling_stages[scaling_stage]
        values = (choices.depth, choices.width, choices.resolution)
        scaling = space.scaling(*(own[len(own) // 2] for own in values))
    return space.decode(space.num_choices // 2, scaling)


def profile_search(
    table: CostTable, family: FamilyFitness | None, most_evaluations: int, seed: int = 0
) -> SearchProfile:
    """Profiles a search; nothing is evaluated.

    Args:
        table: Costs of the space.
        family: Budgets and weights, or None for a search without.
        most_evaluations: Upper bound of the distinct Archs that the search evaluates.
        seed: Of the sample that shares are estimated on.
    """
    space, convention = table.space, table.convention
    stages = range(len(space.scaling_stages))
    scalings = [distinct_scalings(space, j) for j in stages]
    admitted: list[Share | None] = [None for _ in stages]
    scalable: list[Share | None] = [None for _ in stages]
    all_scalable, most_flops = None, None
    if family is not None:
        feasibility = family.feasibility
        rng = np.random.default_rng(seed)
        batches = [sample_base_models(space, rng, _BATCH) for _ in range(_SAMPLE // _BATCH)]
        masks = [feasibility.base_feasible(genes) for genes in batches]
        admitted[0] = Share.of(np.concatenate(masks))
        pairs = zip(batches, masks, strict=True)
        genes = np.concatenate([rows[mask] for rows, mask in pairs])[:_MOST_ON_BUDGET]
        met = np.ones(len(genes), dtype=bool)
        for j in stages[1:]:
            meets = feasibility.admitted(genes, j)
            admitted[j] = Share.of(meets.mean(axis=0))
            scalable[j] = Share.of(meets.any(axis=0))
            met &= meets.any(axis=0)
        all_scalable = Share.of(met)
        if len(genes):
            factor = np.mean([2.0**j for j in family.scored_stages])
            flops = float(table.costs(genes, Scaling()).flops.mean())
            most_flops = float(most_evaluations * factor * flops)
    nominal = [len(space.scalings(j)) for j in stages]
    return SearchProfile(
        space=str(space),
        convention=convention,
        base_models=space.size,
        families=space.size * math.prod(nominal),
        budget=family and family.feasibility.budget,
        metric=family and family.feasibility.metric,
        tolerance=family and family.feasibility.tolerance,
        limits=tuple(family.feasibility.limits.lines()) if family else (),
        stages=tuple(
            ScalingStageProfile(
                scaling_stage=j,
                weight=family and float(family.weights[j]),
                nominal_scalings=nominal[j],
                distinct_scalings=len(scalings[j]),
                smallest=NetworkProfile.of(space.smallest(j), table),
                middle=NetworkProfile.of(_middle(space, j), table),
                largest=NetworkProfile.of(space.largest(j), table),
                admitted=admitted[j],
                scalable=scalable[j],
            )
            for j in stages
        ),
        scalable=all_scalable,
        most_evaluations=most_evaluations,
        most_flops=most_flops,
    )
