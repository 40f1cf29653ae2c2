"""A score by formula with a known optimum: it shows what a search does without a single image."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from itertools import pairwise, zip_longest
from typing import Any

import numpy as np

from mmscale.arch import Arch, Genotype, Scaling
from mmscale.arch.checks import integer
from mmscale.errors import UsageError
from mmscale.search.entry import Score
from mmscale.search.feasibility import Feasibility, Strategy

TOTAL = 1_000_000

_POOL = 512
# Apart from the generators of a search with the same seed.
_STREAM = 7_313

# What a pair of neighbours counts beside a single block.
_PAIR = 2
# Loss per relative deviation of a width or a resolution: 10 % off scores 1 / 1.5.
_LOSS = 5


class AnalyticEvaluator:
    """Scores an Arch by its likeness to a hidden family, which is the optimum of the search.

    The seed draws the family: a base model and a feasible scaling per scaling stage. It meets all
    budgets, so a search can find it, and its fitness is exactly 1 whatever the weights.

    The likeness of an Arch to a hidden Arch is K * W * R, its score that to the hidden Arch which
    it is most like:

    * K: the block at place l of the network agrees with the hidden Arch's at the same place of its
      network stage by a_l = 1 if their kernels are equal, 1/2 if they differ by one size (2), else
      0, also where one of the two has no block there, so that depths count too. Neighbours are
      worth more if both agree or neither does, p_l = a_l * a_(l+1) + (1 - a_l) * (1 - a_(l+1));
      over the L places K = (sum_l a_l + 2 sum_l p_l) / (L + 2 (L - 1)). So the right kernel
      among wrong ones can lower the score: there are local optima, and kernels cannot be
      searched one by one.
    * W = 1 / (1 + 5 x) with x the mean relative deviation of the network stages' widths.
    * R = 1 / (1 + 5 y) with y the relative deviation of the resolution.

    Args:
        feasibility: The budgets.
        seed: Draws the hidden family.
        base: The hidden base model, for a search in which it is given; by default drawn.
        strategy: The hidden strategy, for a search in which it is given; by default drawn.

    Raises:
        ValueError: No family meets the budgets.
    """

    def __init__(
        self,
        feasibility: Feasibility,
        seed: int = 0,
        base: Genotype | None = None,
        strategy: Strategy | None = None,
    ) -> None:
        integer('seed', seed, 0)
        rng = np.random.default_rng([_STREAM, seed])
        space = feasibility.space
        if base is None:
            base = _draw_base(feasibility, rng, strategy)
        genes = np.array(base.genes, dtype=np.int64)
        if strategy is None:
            strategy = (Scaling(),)
            for j in range(1, len(space.scaling_stages)):
                scalings = feasibility.scalings_of(genes, j)
                strategy += (scalings[rng.integers(len(scalings))][0],)
        self.base = base
        self.strategy = strategy
        self.archs = tuple(space.decode(base, scaling) for scaling in strategy)

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
        likeness = max(_likeness(arch, hidden) for hidden in self.archs)
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


def _likeness(arch: Arch, hidden: Arch) -> float:
    agreement: list[float] = []
    deviation = 0.0
    for stage, wanted in zip(arch.stages, hidden.stages, strict=True):
        for block, other in zip_longest(stage, wanted):
            apart = 4 if block is None or other is None else abs(block.kernel - other.kernel)
            agreement.append(1 - apart / 4 if apart < 4 else 0.0)
        deviation += _deviation(stage[-1].out_channels, wanted[-1].out_channels)
    pairs = [a * b + (1 - a) * (1 - b) for a, b in pairwise(agreement)]
    kernels = (sum(agreement) + _PAIR * sum(pairs)) / (len(agreement) + _PAIR * len(pairs))
    width = 1 + _LOSS * deviation / len(hidden.stages)
    resolution = 1 + _LOSS * _deviation(arch.resolution, hidden.resolution)
    return kernels / (width * resolution)


def _deviation(value: int, wanted: int) -> float:
    return max(value, wanted) / min(value, wanted) - 1
