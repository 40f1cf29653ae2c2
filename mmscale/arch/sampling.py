"""ScaleNet's hierarchical sampling of subnets: a pure function of (seed, iteration)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmscale.arch.arch import Arch
from mmscale.arch.checks import choice, integer
from mmscale.arch.rounding import Scaling
from mmscale.arch.space import Genotype, SearchSpace
from mmscale.errors import UsageError

SIDES = ('left', 'right')
DISTRIBUTIONS = ('choices', 'uniform', 'inverse_budget', 'inverse_sqrt_budget')


def checked_sides(sides: Sequence[str]) -> tuple[str, ...]:
    """Sides of the channel coupling.

    Raises:
        UsageError: There is none, one is unknown or comes twice.
    """
    is_list = isinstance(sides, (list, tuple)) and len(sides) > 0
    if not is_list or any(side not in SIDES or sides.count(side) > 1 for side in sides):
        raise UsageError(f'sides={sides!r:.60} must be a non-empty part of {", ".join(SIDES)}')
    return tuple(sides)


@dataclass(frozen=True)
class SubnetDraw:
    """The subnet of one training iteration.

    Attributes:
        scaling_stage: Index of the drawn scaling stage.
        scaling: The drawn multipliers.
        genotype: The drawn base model.
        arch: The scaled network.
        side: Side of the channel coupling, ``left`` or ``right``.
    """

    scaling_stage: int
    scaling: Scaling
    genotype: Genotype
    arch: Arch
    side: str


class HierarchicalSampler:
    """Draws a scaling stage, then a scaling inside it, then a base model.

    Depth multiplier, width multiplier and resolution are independent and uniform inside the
    scaling stage; so is every gene of the base model, see :meth:`SearchSpace.sample`.

    Args:
        space: The search space.
        seed: Seed of all draws.
        distribution: Probability of scaling stage j: ``choices`` is proportional to its number
            of width multipliers (the released code; every width of the space is then equally
            likely, which the fairness of the left/right coupling needs), ``uniform``,
            ``inverse_budget``, proportional to 2^-j (every scaling stage costs as much), or
            ``inverse_sqrt_budget``, to 2^(-j/2), between the two.
        sides: Sides to draw from, uniformly.
        warmup_iters: Number of first iterations that draw from one scaling stage alone.
        warmup_scaling_stage: That scaling stage.

    Raises:
        ValueError: The distribution or a side is unknown.
    """

    def __init__(
        self,
        space: SearchSpace,
        seed: int = 0,
        distribution: str = 'choices',
        sides: Sequence[str] = SIDES,
        warmup_iters: int = 0,
        warmup_scaling_stage: int = 0,
    ) -> None:
        choice('distribution', distribution, DISTRIBUTIONS)
        integer('seed', seed, 0)
        integer('warmup_scaling_stage', warmup_scaling_stage, 0, len(space.scaling_stages) - 1)
        self.space = space
        self.seed = seed
        self.warmup_iters = warmup_iters
        self.warmup_scaling_stage = warmup_scaling_stage
        self.distribution = distribution
        self.sides = checked_sides(sides)
        numbers = range(len(space.scaling_stages))
        weights = {
            'choices': [len(stage.width) for stage in space.scaling_stages],
            'uniform': [1.0 for _ in numbers],
            'inverse_budget': [2.0**-j for j in numbers],
            'inverse_sqrt_budget': [2.0 ** (-j / 2) for j in numbers],
        }[distribution]
        self.probabilities = np.asarray(weights) / np.sum(weights)

    def draw(self, iteration: int) -> SubnetDraw:
        """The subnet of an iteration: equal on every rank and after every resume."""
        rng, stage, base, pixels = self._resolutions(iteration)
        choices = self.space.scaling_stages[stage]
        depth = choices.depth[rng.integers(len(choices.depth))]
        width = choices.width[rng.integers(len(choices.width))]
        side = self.sides[rng.integers(len(self.sides))]
        genes = self.space.sample(rng, 1)[0]
        column = self.space.ends.columns['resolution']
        if column is not None:
            genes[column] = base
        scaling = self.space.scaling(depth, width, pixels)
        return SubnetDraw(
            scaling_stage=stage,
            scaling=scaling,
            genotype=self.space.genotype(genes),
            arch=self.space.decode(genes, scaling),
            side=side,
        )

    def resolution(self, iteration: int) -> int:
        """The resolution of :meth:`draw`, in pixels, without building the Arch."""
        _, _, base, pixels = self._resolutions(iteration)
        base = self.space.ends.choices['resolution'][base]
        multiplier = self.space.scaling(1, 1, pixels).resolution
        return self.space.rounding.resolution(base, multiplier)

    def _resolutions(self, iteration: int) -> tuple[np.random.Generator, int, int, int]:
        """Generator, scaling stage, gene of the base resolution, and the stage's choice."""
        rng = np.random.default_rng([self.seed, iteration])
        stage = int(rng.choice(len(self.probabilities), p=self.probabilities))
        if iteration < self.warmup_iters:
            stage = self.warmup_scaling_stage
        choices = self.space.scaling_stages[stage].resolution
        bases = len(self.space.ends.choices['resolution'])
        if bases == 1:
            return rng, stage, 0, choices[rng.integers(len(choices))]
        pixels = choices[rng.integers(len(choices))] if stage else self.space.resolution
        return rng, stage, int(rng.integers(bases)), pixels
