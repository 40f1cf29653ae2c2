"""SearchSpace: the base models, the scalings of each scaling stage, and their decoding."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmscale.arch.arch import (
    MOST_BLOCKS,
    Arch,
    Block,
    Head,
    SqueezeExcite,
    Stem,
    aligned,
)
from mmscale.arch.checks import check_keys, integer
from mmscale.arch.choices import ScalingChoices, StageChoices
from mmscale.arch.rounding import Rounding, Scaling
from mmscale.arch.scaling import apply_scaling, width_rule
from mmscale.errors import UsageError
from mmscale.tables import AsText

Genes = NDArray[np.int64]


@dataclass(frozen=True)
class Genotype:
    """The integer vector that a search moves in; see :attr:`SearchSpace.num_choices`.

    Many genotypes may mean one base model: the kernel genes after the depth of their network
    stage are dead. :meth:`SearchSpace.canonicalise` sets them to 0.
    """

    genes: tuple[int, ...]


class SearchSpace(AsText):
    """All base models and scalings that a search may choose from.

    A base model has, per network stage, one of the allowed depths and a kernel for each of its
    blocks. A scaling stage j offers depth multipliers, width multipliers and resolutions;
    scaling stage 0 is the base model's own and must be (1, 1, base resolution).

    Args:
        stages: Per network stage ``dict(channels, stride, expand, depths, kernels)``.
        scaling_stages: Per scaling stage ``dict(depth, width, resolution)``, lists of choices;
            the resolutions are pixels.
        stem: ``dict(channels, kernel=3, stride=2)``.
        head: ``dict(channels)``, the unscaled 1x1 convolution after the last network stage.
        num_classes: Outputs of the classifier.
        in_channels: Image channels.
        act: Activation of stem, blocks and head.
        se: ``dict(act='relu', gate='hsigmoid')`` for squeeze-and-excitation in every block, or
            None.
        rule: Width rule, see :data:`mmscale.arch.scaling.WIDTH_RULES`.

    Raises:
        UsageError: A key is unknown or missing or a value is not allowed; the message names it.

    Example:
        >>> space = SearchSpace(
        ...     stages=[dict(channels=16, stride=2, expand=4, depths=[1, 2, 3], kernels=[3, 5])],
        ...     scaling_stages=[
        ...         dict(depth=[1], width=[1], resolution=[32]),
        ...         dict(depth=[1, 1.5], width=[1, 1.2], resolution=[32, 48]),
        ...     ],
        ...     stem=dict(channels=8), head=dict(channels=64), num_classes=10,
        ... )
        >>> space.decode(space.sample(np.random.default_rng(0), 1)[0]).resolution
        32
    """

    def __init__(
        self,
        stages: Sequence[Mapping[str, Any]],
        scaling_stages: Sequence[Mapping[str, Any]],
        stem: Mapping[str, Any],
        head: Mapping[str, Any],
        num_classes: int,
        in_channels: int = 3,
        act: str = 'hswish',
        se: Mapping[str, Any] | None = None,
        rule: str = 'search',
    ) -> None:
        width_rule(rule)
        self.rule = rule
        self.rounding = Rounding()
        self.act = act
        self.se = None if se is None else check_keys('space.se', se, ('act', 'gate'))
        stem = check_keys('space.stem', stem, ('kernel', 'stride'), ('channels',))
        head = check_keys('space.head', head, (), ('channels',))
        self._stem = Stem(
            out_channels=integer('space.stem.channels', stem['channels']),
            in_channels=integer('space.in_channels', in_channels),
            kernel=stem.get('kernel', 3),
            stride=stem.get('stride', 2),
            act=act,
        )
        self._head = Head(
            channels=integer('space.head.channels', head['channels']),
            num_classes=integer('space.num_classes', num_classes),
            act=act,
        )
        for key, value in (('stages', stages), ('scaling_stages', scaling_stages)):
            if not isinstance(value, (list, tuple)) or not value:
                raise UsageError(f'space.{key}={value!r:.60} must be a non-empty list of dicts')
        self.stages = tuple(
            StageChoices.from_config(f'space.stages[{i}]', stage) for i, stage in enumerate(stages)
        )
        self.scaling_stages = tuple(
            ScalingChoices.from_config(f'space.scaling_stages[{j}]', stage)
            for j, stage in enumerate(scaling_stages)
        )
        if sum(stage.depths[-1] for stage in self.stages) > MOST_BLOCKS:
            # Before there are arrays of them.
            raise UsageError(f'space.stages hold more than {MOST_BLOCKS} blocks')
        base = self.scaling_stages[0]
        if base.depth != (1.0,) or base.width != (1.0,) or len(base.resolution) != 1:
            raise UsageError(
                'space.scaling_stages[0] is the base model: it must be '
                'dict(depth=[1], width=[1], resolution=[pixels])'
            )
        self.resolution = base.resolution[0]
        # Decoding the widest network shows what the checks above cannot, before any work starts.
        _ = self.allocation

    # ---------------------------------------------------------------- genotypes

    @cached_property
    def gene_stage(self) -> Genes:
        """Network stage of every gene, shape (genes,)."""
        sizes = [1 + stage.depths[-1] for stage in self.stages]
        return np.repeat(np.arange(len(sizes)), sizes)

    @cached_property
    def gene_slot(self) -> Genes:
        """Block that a kernel gene belongs to, -1 for a depth gene, shape (genes,)."""
        return np.concatenate([np.arange(-1, stage.depths[-1]) for stage in self.stages])

    @cached_property
    def _depth_genes(self) -> Genes:
        """Index of every network stage's depth gene, shape (network stages,)."""
        return np.flatnonzero(self.gene_slot < 0)

    @cached_property
    def num_choices(self) -> Genes:
        """Number of choices of every gene, shape (genes,).

        Network stage after network stage: the depth gene (an index into ``depths``), then one
        kernel gene (an index into ``kernels``) per block of the deepest base model.
        """
        return np.array(
            [
                len(stage.depths) if slot < 0 else len(stage.kernels)
                for stage, slot in zip(
                    (self.stages[i] for i in self.gene_stage), self.gene_slot, strict=True
                )
            ],
            dtype=np.int64,
        )

    @property
    def num_genes(self) -> int:
        """Length of a genotype."""
        return len(self.num_choices)

    @cached_property
    def size(self) -> int:
        """Number of distinct base models."""
        return math.prod(
            sum(len(stage.kernels) ** depth for depth in stage.depths) for stage in self.stages
        )

    def checked(self, genes: Genes) -> Genes:
        """The genes as integers of 64 bits.

        Args:
            genes: Shape (n, genes).

        Raises:
            ValueError: They do not belong to this space.
        """
        genes = np.asarray(genes)
        if genes.dtype.kind not in 'iu':
            raise UsageError(f'genes of type {genes.dtype}: expected integers')
        if genes.ndim != 2 or genes.shape[1] != self.num_genes:
            raise UsageError(f'genes of shape {genes.shape}: expected (n, {self.num_genes})')
        if ((genes < 0) | (genes >= self.num_choices)).any():
            row, gene = np.argwhere((genes < 0) | (genes >= self.num_choices))[0]
            raise UsageError(
                f'genotype {row}: gene {gene}={genes[row, gene]} must lie in '
                f'0..{self.num_choices[gene] - 1}'
            )
        return genes.astype(np.int64, copy=False)

    def _checked_one(self, genes: Genes | Sequence[int]) -> Genes:
        """Genes of shape (genes,) as a population of one."""
        genes = np.asarray(genes)
        if genes.ndim != 1:
            raise UsageError(f'genes of shape {genes.shape}: expected ({self.num_genes},)')
        return self.checked(genes[None])

    def depths(self, genes: Genes) -> Genes:
        """Number of blocks of every network stage, shape (n, network stages)."""
        genes = self.checked(genes)
        return np.stack(
            [
                np.asarray(stage.depths)[genes[:, column]]
                for stage, column in zip(self.stages, self._depth_genes, strict=True)
            ],
            axis=1,
        )

    def live(self, genes: Genes) -> NDArray[np.bool_]:
        """Which genes matter: more than one choice, and not after their stage's depth.

        Args:
            genes: Shape (n, genes).

        Returns:
            Shape (n, genes).
        """
        used = self.gene_slot < self.depths(genes)[:, self.gene_stage]
        return used & (self.num_choices > 1)

    def canonicalise(self, genes: Genes) -> Genes:
        """Sets dead genes to 0, so that equal base models have equal genotypes.

        Args:
            genes: Shape (n, genes).
        """
        return np.where(self.live(genes), self.checked(genes), 0)

    def sample(self, rng: np.random.Generator, count: int) -> Genes:
        """Draws canonical genotypes: every stage's depth uniform, then every kernel uniform.

        Returns:
            Shape (count, genes).
        """
        genes = rng.integers(0, self.num_choices, size=(count, self.num_genes))
        return self.canonicalise(genes)

    # ---------------------------------------------------------------- decoding

    def _block(self, choices: StageChoices, first: bool, in_channels: int, kernel: int) -> Block:
        hidden = in_channels * choices.expand
        stride = choices.stride if first else 1
        residual = stride == 1 and in_channels == choices.channels
        return Block(
            kind='dsconv' if choices.expand == 1 else 'mbconv',
            kernel=kernel,
            stride=stride,
            in_channels=in_channels,
            hidden_channels=hidden,
            out_channels=choices.channels,
            groups=hidden,
            # Squeeze widths are derived by apply_scaling, here they only have to exist.
            se=None if self.se is None else SqueezeExcite(channels=1, **self.se),
            act=self.act,
            residual='identity' if residual else 'none',
        )

    @cached_property
    def _blocks(self) -> tuple[tuple[tuple[Block, ...], tuple[Block, ...]], ...]:
        """Per network stage its first block and a further one, with each of its kernels."""
        blocks = []
        in_channels = self._stem.out_channels
        for choices in self.stages:
            try:
                blocks.append(
                    tuple(
                        tuple(self._block(choices, is_first, channels, k) for k in choices.kernels)
                        for is_first, channels in ((True, in_channels), (False, choices.channels))
                    )
                )
            except ValueError as error:
                raise UsageError(f'space.stages[{len(blocks)}]: {error}') from None
            in_channels = choices.channels
        return tuple(blocks)

    def decode(self, genotype: Genotype | Genes, scaling: Scaling = Scaling()) -> Arch:  # noqa: B008
        """Builds the Arch of a base model under a scaling.

        Args:
            genotype: A genotype, or its genes of shape (genes,).
            scaling: Multipliers; the default gives the base model itself.

        Raises:
            ValueError: The genotype does not belong to this space.
        """
        genes = genotype.genes if isinstance(genotype, Genotype) else genotype
        row = self._checked_one(genes)[0].tolist()
        stages = []
        for choices, (first, further), gene in zip(
            self.stages, self._blocks, self._depth_genes, strict=True
        ):
            kernels = row[gene + 1 : gene + 1 + choices.depths[row[gene]]]
            stages.append((first[kernels[0]], *(further[kernel] for kernel in kernels[1:])))
        base = Arch(self.resolution, self._stem, tuple(stages), self._head)
        return apply_scaling(base, scaling, self.rule, self.rounding)

    def genotype(self, genes: Genes) -> Genotype:
        """The canonical genotype of genes of shape (genes,)."""
        return Genotype(tuple(self.canonicalise(self._checked_one(genes))[0].tolist()))

    def encode(self, arch: Arch) -> Genotype:
        """The canonical genotype of a base model, the inverse of :meth:`decode`.

        Raises:
            ValueError: The Arch is not a base model of this space.
        """
        genes: list[int] = []
        if len(arch.stages) == len(self.stages):
            for choices, stage in zip(self.stages, arch.stages, strict=True):
                kernels = [block.kernel for block in stage]
                known = set(kernels) <= set(choices.kernels) and len(stage) in choices.depths
                if not known:
                    break
                genes.append(choices.depths.index(len(stage)))
                indexes = [choices.kernels.index(kernel) for kernel in kernels]
                genes.extend(indexes + [0] * (choices.depths[-1] - len(stage)))
        genotype = Genotype(tuple(genes))
        if len(genes) != self.num_genes or self.decode(genotype) != arch:
            raise UsageError(f'arch {arch.digest[:10]} is not a base model of this space')
        return genotype

    # ---------------------------------------------------------------- scalings

    def scaling(self, depth: float, width: float, resolution: int) -> Scaling:
        """The Scaling of a depth and a width multiplier and a resolution in pixels."""
        return Scaling(depth, width, resolution / self.resolution)

    def scalings(self, scaling_stage: int) -> tuple[Scaling, ...]:
        """All nominal scalings of a scaling stage, in the order of the config.

        Raises:
            ValueError: The space has no such scaling stage.
        """
        if not 0 <= scaling_stage < len(self.scaling_stages):
            raise UsageError(
                f'scaling_stage={scaling_stage} must lie in 0..{len(self.scaling_stages) - 1}'
            )
        choices = self.scaling_stages[scaling_stage]
        return tuple(
            self.scaling(*triple)
            for triple in itertools.product(choices.depth, choices.width, choices.resolution)
        )

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Every resolution of the space, ascending, in pixels."""
        return tuple(sorted({r for stage in self.scaling_stages for r in stage.resolution}))

    def _extreme(self, kernel: int, depth: int) -> Genes:
        genes = np.where(self.gene_slot < 0, depth, kernel)
        return np.where(genes < 0, self.num_choices - 1, genes)

    def largest(self, scaling_stage: int = -1) -> Arch:
        """The largest network of a scaling stage: deepest, widest, largest kernels and input."""
        choices = self.scaling_stages[scaling_stage]
        scaling = self.scaling(choices.depth[-1], choices.width[-1], choices.resolution[-1])
        return self.decode(self._extreme(-1, -1), scaling)

    def smallest(self, scaling_stage: int = 0) -> Arch:
        """The smallest network of a scaling stage."""
        choices = self.scaling_stages[scaling_stage]
        scaling = self.scaling(choices.depth[0], choices.width[0], choices.resolution[0])
        return self.decode(self._extreme(0, 0), scaling)

    @cached_property
    def widest(self) -> Arch:
        """Of every dimension the space's largest: what a super-supernet of one side allocates."""
        depth = max(stage.depth[-1] for stage in self.scaling_stages)
        width = max(stage.width[-1] for stage in self.scaling_stages)
        scaling = self.scaling(depth, width, self.resolutions[-1])
        return self.decode(self._extreme(-1, -1), scaling)

    @cached_property
    def allocation(self) -> Arch:
        """The Arch whose widths a super-supernet of both sides allocates: largest plus base.

        Left slices are the first channels of a dimension and right slices the last, so both fit
        at every width and every channel is covered equally often under uniform widths
        (ScaleNet's left/right coupling). Dimensions that never scale are allocated once. Depth,
        kernel and resolution are the space's largest.
        """
        wide = self.widest
        depth = max(stage.depth[-1] for stage in self.scaling_stages)
        scaling = self.scaling(depth, 1.0, self.resolutions[-1])
        base = self.decode(self._extreme(-1, -1), scaling)

        def allocated(largest: int, smallest: int) -> int:
            return largest if largest == smallest else largest + smallest

        stages = []
        for wide_stage, base_stage in zip(wide.stages, base.stages, strict=True):
            blocks = []
            for big, small in zip(wide_stage, base_stage, strict=True):
                hidden = allocated(big.hidden_channels, small.hidden_channels)
                se = big.se and replace(
                    big.se, channels=allocated(big.se.channels, small.se.channels)
                )
                blocks.append(
                    replace(
                        big,
                        in_channels=allocated(big.in_channels, small.in_channels),
                        hidden_channels=hidden,
                        out_channels=allocated(big.out_channels, small.out_channels),
                        groups=hidden,
                        se=se,
                    )
                )
            stages.append(tuple(blocks))
        stem = replace(
            wide.stem, out_channels=allocated(wide.stem.out_channels, base.stem.out_channels)
        )
        return replace(wide, stem=stem, stages=tuple(stages))

    def __str__(self) -> str:
        families = self.size * math.prod(
            len(self.scalings(j)) for j in range(len(self.scaling_stages))
        )
        title = (
            f'SearchSpace: {self.size:.4g} base models at {self.resolution} px, {self.num_genes} '
            f'genes; {families:.4g} families over {len(self.scaling_stages)} scaling stages'
        )
        rows = [('network stage', 'channels', 'stride', 'expand', 'depths', 'kernels')]
        for i, stage in enumerate(self.stages, start=1):
            numbers = (str(n) for n in (stage.channels, stage.stride, stage.expand))
            rows.append((str(i), *numbers, _listed(stage.depths), _listed(stage.kernels)))
        scalings = [('scaling stage', 'depth', 'width', 'resolution', 'nominal scalings')]
        for j, stage in enumerate(self.scaling_stages):
            choices = (_listed(c) for c in (stage.depth, stage.width, stage.resolution))
            scalings.append((str(j), *choices, str(len(self.scalings(j)))))
        return f'{title}\n{aligned(rows)}\n{aligned(scalings)}'


def _listed(values: Sequence[float]) -> str:
    """Choices for printing: all of a few, the range of many."""
    if len(values) > 5:
        return f'{values[0]:g} to {values[-1]:g} ({len(values)})'
    return ' '.join(f'{value:g}' for value in values)
