"""SearchSpace: the base models, the scalings of each scaling stage, and their decoding."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmscale.arch.arch import ACTS, MOST_BLOCKS, PADDINGS, Arch
from mmscale.arch.checks import check_keys, choice, number
from mmscale.arch.choices import (
    BlockDefaults,
    ScalingChoices,
    SEChoice,
    StageChoices,
    ascending,
    rule_of,
)
from mmscale.arch.ends import Ends
from mmscale.arch.genes import Gene, Genes, Genotype, StageGenes, check_genes
from mmscale.arch.options import BlockOptions
from mmscale.arch.rounding import Rounding, Scaling
from mmscale.arch.scaling import apply_scaling, width_rule
from mmscale.arch.slots import Slot, make_slots
from mmscale.arch.spoken import choices_of, describe_space, genes_of
from mmscale.errors import UsageError
from mmscale.tables import AsText


class SearchSpace(AsText):
    """All base models and scalings that a search may choose from.

    A base model has, per network stage, one of the allowed widths and depths, and for each of its
    blocks (or for all together) a kind, a kernel, an expansion, a group width, SE and an
    activation. A scaling stage j offers depth multipliers, width multipliers and resolutions;
    scaling stage 0 is the base model's own. A space with one scaling stage is an ordinary search
    space. ``docs/search_spaces.md`` has all keys, with examples.

    Args:
        stages: Per network stage ``dict(channels, depths, kernels)`` and, if wanted, ``stride``,
            ``kind``, ``expands`` (or ``expand``), ``group_widths``, ``se``, ``act``, ``share``,
            ``skips``, ``blocks`` and ``first``. A value is a choice where it is a list.
        scaling_stages: Per scaling stage ``dict(depth, width, resolution)``, lists of choices;
            the resolutions are pixels. Resolutions of scaling stage 0 are choices of the base
            model; those of the others are for base models of the largest of them, and in
            proportion for smaller ones.
        stem: ``dict(channels, kernel=3, stride=2, act, max_pool=False)``.
        head: ``dict(channels, hidden_channels=0, act)``, the unscaled 1x1 convolution after the
            last network stage (0 for none) and the linear layer before the classifier.
        num_classes: Outputs of the classifier.
        in_channels: Image channels.
        act: Activation of stem, blocks and head.
        se: ``dict(act='relu', gate='hsigmoid')`` for squeeze-and-excitation in every block, or
            None. With ``ratio``, ``of`` and ``divisor`` it names the squeeze width, which
            otherwise follows from the width rule.
        rule: Width rule of scalings, see :data:`mmscale.arch.scaling.WIDTH_RULES`; by default
            ``search``, and ``proportional`` where `se` has a ratio.
        resolution: In place of `scaling_stages`: choices of an ordinary search space.
        rounding: ``dict(mode='ceil', channel_divisor=1)`` of hidden, squeeze and scaled widths.
        padding: As in :class:`Block`.
        eps: Epsilon of the BNs.

    Raises:
        UsageError: A key is unknown or missing or a value is not allowed; the message names it.

    Example:
        >>> space = SearchSpace(
        ...     stages=[dict(channels=[16, 24], stride=2, expands=[3, 4], depths=[1, 2, 3],
        ...                  kernels=[3, 5])],
        ...     scaling_stages=[
        ...         dict(depth=[1], width=[1], resolution=[32]),
        ...         dict(depth=[1, 1.5], width=[1, 1.2], resolution=[32, 48]),
        ...     ],
        ...     stem=dict(channels=8), head=dict(channels=64), num_classes=10,
        ... )
        >>> space.decode(space.sample(np.random.default_rng(0), 1)[0]).resolution
        32
        >>> space.size
        168
    """

    def __init__(
        self,
        stages: Sequence[Mapping[str, Any]],
        stem: Mapping[str, Any],
        head: Mapping[str, Any],
        num_classes: int,
        scaling_stages: Sequence[Mapping[str, Any]] | None = None,
        in_channels: int = 3,
        act: str = 'hswish',
        se: Mapping[str, Any] | None = None,
        rule: str | None = None,
        resolution: int | Sequence[int] | None = None,
        rounding: Mapping[str, Any] | None = None,
        padding: str = 'half',
        eps: float = 1e-5,
    ) -> None:
        self.act = choice('space.act', act, ACTS)
        choice('space.padding', padding, PADDINGS)
        number('space.eps', eps, above=0, below=1)
        self.rounding = Rounding.from_config('space.rounding', rounding)
        self.se = SEChoice.from_config('space.se', se, None)
        defaults = BlockDefaults(act, self.se, self.rounding, padding, eps)
        if (scaling_stages is None) == (resolution is None):
            raise UsageError(
                'space: give one of scaling_stages and resolution (a config that inherits another '
                'space needs _delete_=True)'
            )
        if scaling_stages is None:
            resolution = ascending('space.resolution', resolution)
            scaling_stages = [dict(depth=[1], width=[1], resolution=list(resolution))]
        for key, value in (('stages', stages), ('scaling_stages', scaling_stages)):
            if not isinstance(value, (list, tuple)) or not value:
                raise UsageError(f'space.{key}={value!r:.60} must be a non-empty list of dicts')
        self.stages = tuple(
            StageChoices.from_config(f'space.stages[{i}]', stage, defaults)
            for i, stage in enumerate(stages)
        )
        self.scaling_stages = tuple(
            ScalingChoices.from_config(f'space.scaling_stages[{j}]', stage)
            for j, stage in enumerate(scaling_stages)
        )
        if sum(stage.depths[-1] for stage in self.stages) > MOST_BLOCKS:
            raise UsageError(f'space.stages hold more than {MOST_BLOCKS} blocks')
        base = self.scaling_stages[0]
        if base.depth != (1.0,) or base.width != (1.0,):
            raise UsageError(
                'space.scaling_stages[0] is the base model: it must be '
                'dict(depth=[1], width=[1], resolution=[pixels])'
            )
        self.resolution = base.resolution[-1]
        self.rule = rule_of(self.stages, rule)
        self.width_rule = width_rule(self.rule)
        self.ends = Ends.from_config(
            base.resolution, stem, head, num_classes, in_channels, defaults
        )
        self.genes = self._make_genes()
        # The widest network shows what the checks above cannot, before any work starts.
        _ = self.allocation

    @classmethod
    def from_config(cls, config: object) -> SearchSpace:
        """The space that a config spells out.

        Raises:
            ValueError: A key is unknown or missing, or a value is not allowed; it is named.
        """
        keys = inspect.signature(cls).parameters.values()
        required = [key.name for key in keys if key.default is key.empty]
        return cls(**check_keys('space', config, [key.name for key in keys], required))

    def _make_genes(self) -> tuple[Gene, ...]:
        genes: list[Gene] = []

        def add_end(name: str, stage: int) -> None:
            values = self.ends.choices[name]
            if len(values) > 1:
                self.ends.columns[name] = len(genes)
                genes.append(Gene(name, stage, -1, values))

        add_end('resolution', 0)
        add_end('stem', 0)
        before, widths = self.ends.columns['stem'], self.ends.choices['stem']
        self.stage_genes: list[StageGenes] = []
        for i, choices in enumerate(self.stages):
            first, further = (
                BlockOptions(
                    f'space.stages[{i}]', choices, is_first, widths, self.width_rule, self.rounding
                )
                for is_first in (True, False)
            )
            stage = StageGenes(choices, first, further, before, genes, i)
            if stage.is_ambiguous:
                for options in (first, further):
                    options.check_synonyms(f'space.stages[{i}]')
            self.stage_genes.append(stage)
            before, widths = stage.channels, choices.channels
        add_end('head_channels', len(self.stages) - 1)
        add_end('head_hidden_channels', len(self.stages) - 1)
        return tuple(genes)

    # ---------------------------------------------------------------- genotypes

    @cached_property
    def gene_stage(self) -> Genes:
        """Network stage of every gene, shape (genes,)."""
        return np.array([gene.stage for gene in self.genes], dtype=np.int64)

    @cached_property
    def gene_slot(self) -> Genes:
        """Block that a gene belongs to, -1 for one of a whole network stage, shape (genes,)."""
        return np.array([gene.slot for gene in self.genes], dtype=np.int64)

    @cached_property
    def num_choices(self) -> Genes:
        """Number of choices of every gene, shape (genes,)."""
        return np.array([len(gene.values) for gene in self.genes], dtype=np.int64)

    @property
    def num_genes(self) -> int:
        """Length of a genotype."""
        return len(self.genes)

    @cached_property
    def size(self) -> int:
        """Number of distinct base models."""
        choices = self.ends.choices
        counts = [1] * len(choices['stem'])
        for stage in self.stage_genes:
            # The number of sequences differs between widths where some choices mean one block.
            counts = [
                sum(
                    number * sum(stage.sequences(before, after))
                    for before, number in enumerate(counts)
                )
                for after in range(len(stage.choices.channels))
            ]
        others = (len(values) for name, values in choices.items() if name != 'stem')
        return sum(counts) * math.prod(others)

    def checked(self, genes: Genes) -> Genes:
        """The genes as integers of 64 bits.

        Args:
            genes: Shape (n, genes).

        Raises:
            ValueError: They do not belong to this space.
        """
        return check_genes(genes, self.num_choices)

    def _checked_one(self, genes: Genes | Sequence[int]) -> Genes:
        """Genes of shape (genes,) as a population of one."""
        genes = np.asarray(genes)
        if genes.ndim != 1:
            raise UsageError(f'genes of shape {genes.shape}: expected ({self.num_genes},)')
        return self.checked(genes[None])

    def depths(self, genes: Genes) -> Genes:
        """Number of blocks of every network stage, shape (n, network stages)."""
        genes = self.checked(genes)
        return np.stack([stage.depths(genes) for stage in self.stage_genes], axis=1)

    def _used(self, genes: Genes) -> NDArray[np.bool_]:
        used = self.gene_slot < self.depths(genes)[:, self.gene_stage]
        return used & (self.num_choices > 1)

    def live(self, genes: Genes) -> NDArray[np.bool_]:
        """Which genes matter: another value may mean another base model.

        Those of blocks after their stage's depth do not, nor the expansion of a block that has
        none.

        Args:
            genes: Shape (n, genes).

        Returns:
            Shape (n, genes).
        """
        live = self._used(genes)
        for stage in self.stage_genes:
            if stage.is_ambiguous:
                live &= stage.mattering(np.where(self._used(genes), genes, 0))
        return live

    def canonicalise(self, genes: Genes) -> Genes:
        """Makes genotypes of equal base models equal: dead genes are 0.

        Args:
            genes: Shape (n, genes).
        """
        genes = np.where(self._used(genes), self.checked(genes), 0)
        for stage in self.stage_genes:
            genes = stage.canonicalise(genes)
        return genes

    def sample(self, rng: np.random.Generator, count: int) -> Genes:
        """Draws canonical genotypes, every gene uniform.

        In network stages with ``skips='anywhere'`` every block but the first is left out as likely
        as it is any one of its choices.

        Returns:
            Shape (count, genes).
        """
        genes = rng.integers(0, self.num_choices, size=(count, self.num_genes))
        for stage in self.stage_genes:
            if stage.choices.skips == 'anywhere':
                shares = stage.skip_shares
                genes[:, stage.depth] = rng.choice(len(shares), count, p=shares)
        return self.canonicalise(genes)

    # ---------------------------------------------------------------- decoding

    def base(self, row: Sequence[int]) -> Arch:
        """The base model of one checked genotype, a list of integers."""
        return Arch(
            self.ends.value('resolution', row),
            self.ends.stem_of(row),
            tuple(stage.blocks(row) for stage in self.stage_genes),
            self.ends.head_of(row),
        )

    def decode(self, genotype: Genotype | Genes, scaling: Scaling = Scaling()) -> Arch:  # noqa: B008
        """Builds the Arch of a base model under a scaling.

        Args:
            genotype: A genotype, or its genes of shape (genes,).
            scaling: Multipliers; the default gives the base model itself.

        Raises:
            ValueError: The genotype does not belong to this space.
        """
        genes = genotype.genes if isinstance(genotype, Genotype) else genotype
        base = self.base(self._checked_one(genes)[0].tolist())
        return apply_scaling(base, scaling, self.rule, self.rounding)

    def genotype(self, genes: Genes) -> Genotype:
        """The canonical genotype of genes of shape (genes,)."""
        return Genotype(tuple(self.canonicalise(self._checked_one(genes))[0].tolist()))

    def encode(self, arch: Arch) -> Genotype:
        """The canonical genotype of a base model, the inverse of :meth:`decode`.

        Raises:
            ValueError: The Arch is not a base model of this space.
        """
        genes = np.zeros(self.num_genes, dtype=np.int64)
        wanted = {
            'resolution': arch.resolution,
            'stem': arch.stem.out_channels,
            'head_channels': arch.head.channels,
            'head_hidden_channels': arch.head.hidden_channels,
        }
        is_known = len(arch.stages) == len(self.stages)
        for name, value in wanted.items():
            values, column = self.ends.choices[name], self.ends.columns[name]
            is_known = is_known and value in values
            if is_known and column is not None:
                genes[column] = values.index(value)
        if is_known:
            before = self.ends.choices['stem'].index(arch.stem.out_channels)
            for stage, blocks in zip(self.stage_genes, arch.stages, strict=True):
                channels = stage.choices.channels
                is_known = is_known and blocks[-1].out_channels in channels
                if not is_known:
                    break
                after = channels.index(blocks[-1].out_channels)
                if stage.channels is not None:
                    genes[stage.channels] = after
                is_known = stage.find(blocks, before, after, genes)
                before = after
        if not is_known or self.decode(genes) != arch:
            raise UsageError(f'arch {arch.digest[:10]} is not a base model of this space')
        return self.genotype(genes)

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
        if scaling_stage == 0:
            # The base model's resolution is a gene, not a scaling.
            return (Scaling(),)
        choices = self.scaling_stages[scaling_stage]
        return tuple(
            self.scaling(*triple)
            for triple in itertools.product(choices.depth, choices.width, choices.resolution)
        )

    @cached_property
    def resolutions(self) -> tuple[int, ...]:
        """Every resolution of the space, ascending, in pixels."""
        multipliers = {1.0} | {
            self.scaling(1, 1, pixels).resolution
            for stage in self.scaling_stages[1:]
            for pixels in stage.resolution
        }
        pairs = itertools.product(self.ends.choices['resolution'], multipliers)
        return tuple(sorted({self.rounding.resolution(*pair) for pair in pairs}))

    def extreme(self, largest: bool) -> Genes:
        """Genes of the base model with the most or the fewest weights, shape (genes,)."""
        genes = np.zeros(self.num_genes, dtype=np.int64)
        for column in self.ends.columns.values():
            if largest and column is not None:
                genes[column] = self.num_choices[column] - 1
        for stage in self.stage_genes:
            stage.set_extreme(genes, largest)
        return genes

    def largest(self, scaling_stage: int = -1) -> Arch:
        """The largest network of a scaling stage: deepest, widest, largest blocks and input."""
        scalings = self.scalings(scaling_stage % len(self.scaling_stages))
        return self.decode(self.extreme(True), scalings[-1])

    def smallest(self, scaling_stage: int = 0) -> Arch:
        """The smallest network of a scaling stage."""
        scalings = self.scalings(scaling_stage % len(self.scaling_stages))
        return self.decode(self.extreme(False), scalings[0])

    @cached_property
    def _most(self) -> tuple[float, float]:
        """Largest multipliers of depth and width."""
        return (
            max(stage.depth[-1] for stage in self.scaling_stages),
            max(stage.width[-1] for stage in self.scaling_stages),
        )

    def slots(self, both_sides: bool) -> tuple[tuple[dict[str, Slot], ...], ...]:
        """The places of a super-supernet: per network stage, per block, by variant.

        Variants (see :func:`mmscale.arch.slots.variant_of`) of one place hold separate weights.

        Args:
            both_sides: Whether there is room for both sides of the channel coupling.
        """
        return tuple(
            make_slots(stage, *self._most, self.width_rule, self.rounding, both_sides)
            for stage in self.stage_genes
        )

    @cached_property
    def widest(self) -> Arch:
        """Of every dimension the space's largest: what a super-supernet of one side allocates.

        Of blocks of several variants it has the first one.
        """
        return self._allocated(both_sides=False)

    @cached_property
    def allocation(self) -> Arch:
        """The Arch whose widths a super-supernet of both sides allocates: largest plus smallest.

        See :func:`mmscale.arch.slots.allocate`. Depth, kernel and resolution are the space's
        largest.
        """
        return self._allocated(both_sides=True)

    def _allocated(self, both_sides: bool) -> Arch:
        stem, head = self.ends.allocated(self._most[1], self.rounding, both_sides)
        stages = tuple(
            tuple(next(iter(slots.values())).block for slots in places)
            for places in self.slots(both_sides)
        )
        return Arch(self.resolutions[-1], stem, stages, head)

    # ---------------------------------------------------------------- words

    def choices(self, genotype: Genotype | Genes) -> dict[str, Any]:
        """What a genotype chooses, by name; see :meth:`genotype_of`.

        Raises:
            ValueError: The genotype does not belong to this space.
        """
        genes = genotype.genes if isinstance(genotype, Genotype) else genotype
        return choices_of(self, self._checked_one(genes)[0].tolist())

    def genotype_of(self, choices: Mapping[str, Any]) -> Genotype:
        """The canonical genotype of choices by name, the inverse of :meth:`choices`.

        Args:
            choices: ``dict(stages=[dict(channels, blocks=[dict(kernel, expand, ...), ...]), ...],
                resolution, stem, head_channels, head_hidden_channels)``. What has one value may be
                left out, and None among the blocks is a block that is skipped.

        Raises:
            ValueError: A choice is missing, unknown or none of this space.

        Example:
            >>> space = SearchSpace(
            ...     stages=[dict(channels=8, depths=[1, 2], kernels=[3, 5])], resolution=32,
            ...     stem=dict(channels=8), head=dict(channels=0), num_classes=10,
            ... )
            >>> space.genotype_of(dict(stages=[dict(blocks=[dict(kernel=5), dict(kernel=3)])]))
            Genotype(genes=(1, 1, 0))
        """
        return self.genotype(np.array(genes_of(self, choices)))

    def __str__(self) -> str:
        return describe_space(self)
