"""Channel groups: what shares a width, and which blocks can go, as immutable data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mmscale.arch.checks import choice
from mmscale.errors import UsageError
from mmscale.tables import AsText

ROLES = ('out', 'in', 'through', 'norm')
GROUP_KINDS = ('width', 'heads', 'qk_size', 'v_size', 'head_size', 'embedding')


def runs(size: int, repeats: int = 1, start: int = 0) -> np.ndarray:
    """Indices of elements that each own `repeats` neighbouring channels; (size, repeats)."""
    return start + np.arange(size * repeats).reshape(size, repeats)


def slots(size: int, repeats: int) -> np.ndarray:
    """Indices of elements that own the same slot of each of `repeats` parts; (size, repeats)."""
    return np.arange(size * repeats).reshape(repeats, size).T


@dataclass(frozen=True, eq=False)
class Member:
    """One dimension of one layer that a group's elements lie in.

    Attributes:
        module: Dotted name of the layer, or of a parameter that belongs to no known layer.
        role: ``out``, the layer's outputs; ``in``, its inputs, which the mask multiplies;
            ``through``, both, channel by channel (batch norm, depthwise convolution, scale);
            ``norm``, both, with statistics over the channels that stay (layer norm).
        indices: Channels of that dimension that each element owns, shape (size, repeats).
        dim: Dimension of a parameter, counted from the end; None for layers.
        masks_output: Whether the mask multiplies the output of this ``out`` member, which it
            needs to where no layer consumes it: keys of attention.
    """

    module: str
    role: str
    indices: np.ndarray
    dim: int | None = None
    masks_output: bool = False

    def __post_init__(self) -> None:
        choice(f'{self.module}: role', self.role, ROLES)
        indices = np.array(self.indices, dtype=np.int64)
        if indices.ndim != 2 or indices.size != np.unique(indices).size:
            raise UsageError(
                f'{self.module}: indices of shape {indices.shape} must be two-dimensional, each '
                'channel once'
            )
        indices.setflags(write=False)
        object.__setattr__(self, 'indices', indices)


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Elements (channels, heads, ...) that layers share: they can only go in all of them.

    Attributes:
        name: Its own, by default that of the first layer that makes the channels.
        size: Number of elements.
        members: Where they lie.
        kind: ``width``, of channels and inside MLPs; ``heads`` of attention; ``qk_size``, the
            places of queries and keys in heads, ``v_size``, those of values, or ``head_size``
            where these are tied; ``embedding``, a residual stream.
        counts: Attributes that hold a multiple of the number of elements: name of the module,
            attribute, multiple.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    kind: str = 'width'
    counts: tuple[tuple[str, str, int], ...] = ()

    def __post_init__(self) -> None:
        choice(f'group {self.name}: kind', self.kind, GROUP_KINDS)
        for member in self.members:
            if len(member.indices) != self.size:
                raise UsageError(
                    f'group {self.name}: {member.module} has indices for {len(member.indices)} '
                    f'elements, the group has {self.size}'
                )

    @property
    def key(self) -> str:
        """The name without dots, as torch wants it for modules in a ModuleDict."""
        return self.name.replace('.', '/')

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that it ties, each once."""
        return tuple(dict.fromkeys(member.module for member in self.members))

    def __str__(self) -> str:
        ties = ', '.join(f'{member.module} ({member.role})' for member in self.members)
        return f'{self.name}: {self.size} {self.kind}: {ties}'


@dataclass(frozen=True)
class DepthGroup:
    """Residual blocks of a network stage that can go, ``x + mask * branch(x)``.

    Attributes:
        name: Of the network stage.
        blocks: Names of the blocks that can go: those whose shortcut is the identity.
        branch_ends: For each block the names of the layers whose outputs are added to the
            shortcut: the mask multiplies them. They are linear or norm layers with weights.
    """

    name: str
    blocks: tuple[str, ...]
    branch_ends: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        if not self.blocks or len(self.blocks) != len(self.branch_ends):
            raise UsageError(
                f'depth {self.name}: {len(self.blocks)} blocks and branch ends of '
                f'{len(self.branch_ends)}'
            )

    @property
    def key(self) -> str:
        """The name without dots, as torch wants it for modules in a ModuleDict."""
        return self.name.replace('.', '/')

    @property
    def size(self) -> int:
        """Number of blocks that can go."""
        return len(self.blocks)

    def __str__(self) -> str:
        return f'{self.name}: {self.size} blocks: {", ".join(self.blocks)}'


@dataclass(frozen=True, eq=False)
class ChannelGroups(AsText, Sequence):
    """Everything in a network that can get narrower or shallower.

    As a sequence it is its width groups.

    Attributes:
        widths: Groups of channels, heads and so on.
        depths: Groups of blocks.
    """

    widths: tuple[ChannelGroup, ...]
    depths: tuple[DepthGroup, ...] = ()

    def __post_init__(self) -> None:
        names = [group.name for group in (*self.widths, *self.depths)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UsageError(f'groups: the name {", ".join(twice)} comes more than once')

    def __getitem__(self, key: int | slice) -> ChannelGroup | tuple[ChannelGroup, ...]:
        return self.widths[key]

    def __len__(self) -> int:
        return len(self.widths)

    @property
    def all(self) -> tuple[ChannelGroup | DepthGroup, ...]:
        """Groups of widths, then of depths."""
        return (*self.widths, *self.depths)

    @cached_property
    def by_name(self) -> dict[str, ChannelGroup | DepthGroup]:
        """Every group under its name."""
        return {group.name: group for group in self.all}

    @property
    def elements(self) -> int:
        """Number of elements of all width groups."""
        return sum(group.size for group in self.widths)

    @property
    def members(self) -> Iterator[tuple[ChannelGroup, Member]]:
        """Every member, with its group."""
        return ((group, member) for group in self.widths for member in group.members)

    def __str__(self) -> str:
        blocks = sum(depth.size for depth in self.depths)
        lines = [
            f'{len(self.widths)} groups of {self.elements:,} elements, {len(self.depths)} depths '
            f'of {blocks} blocks'
        ]
        lines += [f'  {group}' for group in self.all]
        return '\n'.join(lines)
