"""A score by formula with a known optimum: it shows what a search does without a single image."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from itertools import pairwise, zip_longest
from typing import Any

import numpy as np

from mmscale.arch import Arch, Block, Genotype, Scaling
from mmscale.arch.checks import integer
from mmscale.arch.genes import Genes
from mmscale.errors import UsageError
from mmscale.search.entry import Score
from mmscale.search.feasibility import Feasibility, Strategy
from mmscale.search.operators import mutate
from mmscale.search.varied import expansion, group_width, varied

TOTAL = 1_000_000

_POOL = 512
# Apart from the generators of a search with the same seed.
_STREAM = 7_313

# What a pair of neighbours counts beside a single block.
_PAIR = 2
# Loss per relative deviation of a width or a resolution: 10 % off scores 1 / 1.5.
_LOSS = 5
# Likeness of blocks of two kinds, say.
_OTHER = 0.5


class AnalyticEvaluator:
    """Scores an Arch by its likeness to a hidden family, which is the optimum of the search.

    The seed draws the family: a base model and a feasible scaling per scaling stage. It meets all
    budgets, so a search can find it, and its fitness is exactly 1 whatever the weights. With
    `drift` it is no family: each hidden network has a base model of its own, so that the best base
    model changes with the scale, and what is best at scaling stage 0 is not what scales best.

    The likeness of an Arch to a hidden Arch is K * W * R, its score that to the hidden Arch which
    it is most like:

    * K: the block at place l of the network agrees with the hidden Arch's at the same place of its
      network stage by a_l = 1 if their kernels are equal, 1/2 if they differ by one size (2), else
      0, also where one of the two has no block there, so that depths count too. Neighbours are
      worth more if both agree or neither does, p_l = a_l * a_(l+1) + (1 - a_l) * (1 - a_(l+1));
      over the L places K = (sum_l a_l + 2 sum_l p_l) / (L + 2 (L - 1)). So the right kernel
      among wrong ones can lower the score: there are local optima, and kernels cannot be
      searched one by one.
      What else the space chooses of blocks takes its part of a_l: an expansion, a group width
      or a squeeze width by the ratio of the smaller to the larger one, another kind, another
      activation, or groups or an SE that only one of the two has, half.
    * W = 1 / (1 + 5 x) with x the mean relative deviation of the network stages' widths, and of
      those of stem and head that are choices.
    * R = 1 / (1 + 5 y) with y the relative deviation of the resolution.

    Args:
        feasibility: The budgets.
        seed: Draws the hidden family.
        base: The hidden base model, for a search in which it is given; by default drawn.
        strategy: The hidden strategy, for a search in which it is given; by default drawn.
        drift: Expected number of gene changes from the hidden base model of a scaling stage to
            that of the next one; 0 for one base model. No family has a fitness of 1 then.

    Raises:
        ValueError: No family meets the budgets.
    """

    def __init__(
        self,
        feasibility: Feasibility,
        seed: int = 0,
        base: Genotype | None = None,
        strategy: Strategy | None = None,
        drift: int = 0,
    ) -> None:
        integer('seed', seed, 0)
        integer('drift', drift, 0)
        rng = np.random.default_rng([_STREAM, seed])
        space = feasibility.space
        if base is None:
            base = _draw_base(feasibility, rng, strategy)
        genes = np.array(base.genes, dtype=np.int64)
        bases = [genes]
        for j in range(1, len(space.scaling_stages) if drift else 0):
            bases.append(_drifted(feasibility, bases[-1], j, drift, rng))
        if strategy is None:
            strategy = (Scaling(),)
            for j in range(1, len(space.scaling_stages)):
                scalings = feasibility.scalings_of(bases[j] if drift else genes, j)
                strategy += (scalings[rng.integers(len(scalings))][0],)
        self.base = base
        self.strategy = strategy
        bases = bases if drift else bases * len(strategy)
        self.archs = tuple(map(space.decode, bases, strategy))
        self._varied = varied(space)

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """The hidden Archs."""
        return {
            'evaluator': {
                'name': 'analytic',
                'total': TOTAL,
                'hidden': [arch.digest for arch in self.archs],
            }
        }

    def evaluate(self, arch: Arch, needed: Fraction | None = None) -> Score:
        """The score of an Arch of the same space: 1 for the hidden Archs, for others below 1.

        It costs nothing, so that it is given also where it is below what is needed.
        """
        if arch in self.archs:
            return Score(TOTAL, TOTAL)
        likeness = max(_likeness(arch, hidden, self._varied) for hidden in self.archs)
        return Score(min(int(likeness * TOTAL), TOTAL - 1), TOTAL)


def _draw_base(
    feasibility: Feasibility, rng: np.random.Generator, strategy: Strategy | None
) -> Genotype:
    """A base model that meets the budgets of a strategy, or of any."""
    space = feasibility.space
    pool = feasibility.draw(rng, _POOL, strategy or (Scaling(),))
    if not len(pool):
        raise UsageError(feasibility.explain_empty(strategy or (Scaling(),), rng))
    scalable = np.ones(len(pool), dtype=bool)
    if strategy is None:
        for j in range(1, len(space.scaling_stages)):
            scalable &= feasibility.admitted(pool, j).any(axis=0)
    if not scalable.any():
        raise UsageError(feasibility.explain_unscalable(pool))
    # The pool is ordered by how it was found: repaired base models come last.
    return space.genotype(rng.choice(pool[scalable]))


def _drifted(
    feasibility: Feasibility,
    genes: Genes,
    scaling_stage: int,
    drift: int,
    rng: np.random.Generator,
) -> Genes:
    """A base model near another that meets its budget and has a scaling of a scaling stage."""
    near = mutate(feasibility.space, np.repeat(genes[None], _POOL, axis=0), rng, drift)
    near = near[feasibility.base_feasible(near)]
    near = near[feasibility.admitted(near, scaling_stage).any(axis=0)]
    if not len(near):
        raise UsageError(f'drift={drift}: nothing near scales to scaling stage {scaling_stage}')
    return near[0]


def _likeness(arch: Arch, hidden: Arch, varied: tuple[str, ...]) -> float:
    agreement: list[float] = []
    deviation = 0.0
    for stage, wanted in zip(arch.stages, hidden.stages, strict=True):
        for block, other in zip_longest(stage, wanted):
            if block is None or other is None:
                agreement.append(0.0)
            else:
                agreement.append(_agreement(block, other, varied))
        deviation += _deviation(stage[-1].out_channels, wanted[-1].out_channels)
    pairs = [a * b + (1 - a) * (1 - b) for a, b in pairwise(agreement)]
    kernels = (sum(agreement) + _PAIR * sum(pairs)) / (len(agreement) + _PAIR * len(pairs))
    ends = {
        'stem': (arch.stem.out_channels, hidden.stem.out_channels),
        'head': (arch.head.channels, hidden.head.channels),
        'hidden head': (arch.head.hidden_channels, hidden.head.hidden_channels),
    }
    chosen = [pair for name, pair in ends.items() if name in varied]
    deviation += sum(_deviation(*pair) for pair in chosen)
    width = 1 + _LOSS * deviation / (len(hidden.stages) + len(chosen))
    resolution = 1 + _LOSS * _deviation(arch.resolution, hidden.resolution)
    return kernels / (width * resolution)


def _agreement(block: Block, other: Block, varied: tuple[str, ...]) -> float:
    """How like two blocks are in their kernels, and in what else the space chooses."""
    agreement = max(0.0, 1 - abs(block.kernel - other.kernel) / 4)
    if 'kind' in varied and block.kind != other.kind:
        agreement *= _OTHER
    if 'act' in varied and block.act != other.act:
        agreement *= _OTHER
    if 'expand' in varied:
        agreement *= _ratio(expansion(block), expansion(other))
    if 'group_width' in varied:
        agreement *= _ratio(group_width(block), group_width(other))
        agreement *= _OTHER if (block.groups == 1) != (other.groups == 1) else 1
    if 'se' in varied and block.se != other.se:
        if block.se is None or other.se is None:
            agreement *= _OTHER
        else:
            forms = [(block.se.act, block.se.gate), (other.se.act, other.se.gate)]
            agreement *= _OTHER if forms[0] != forms[1] else 1
            agreement *= _ratio(*(b.se.channels / b.grouped_widths[1] for b in (block, other)))
    return agreement


def _ratio(one: float, other: float) -> float:
    return min(one, other) / max(one, other)


def _deviation(value: int, wanted: int) -> float:
    return max(value, wanted) / min(value, wanted) - 1
