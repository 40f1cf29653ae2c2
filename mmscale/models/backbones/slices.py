"""Where a subnet's weights lie in those of a super-supernet, and the layers that run on them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

# One slice per dimension of a tensor, as hashable (start, stop) pairs.
Region = tuple[tuple[int, int], ...]


def index_of(region: Region) -> tuple[slice, ...]:
    """The index that cuts a region out of its tensor."""
    return tuple(slice(start, stop) for start, stop in region)


def slice_region(allocated: Sequence[int], wanted: Sequence[int], side: str) -> Region:
    """Where a subnet's tensor lies in the super-supernet's (BCNet's coupling, as in ScaleNet).

    Channels are the first ones of a dimension on the left side and the last ones on the right.
    Kernels, the dimensions from the third on, are the centre of the larger kernel.

    Args:
        allocated: Shape in the super-supernet.
        wanted: Shape in the subnet.
        side: ``left`` or ``right``.
    """
    region = []
    for dimension, (size, part) in enumerate(zip(allocated, wanted, strict=True)):
        offsets = {'left': 0, 'right': size - part}
        start = offsets[side] if dimension < 2 else (size - part) // 2
        region.append((start, start + part))
    return tuple(region)


def intersection(one: Region, other: Region) -> Region | None:
    """What two regions of a tensor share; None if that is nothing."""
    shared = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(one, other, strict=True))
    return shared if all(start < stop for start, stop in shared) else None


def without(region: Region, hole: Region) -> list[Region]:
    """The regions, disjoint, that a hole leaves of one.

    Example:
        >>> without(((0, 4), (0, 4)), ((2, 6), (2, 6)))
        [((0, 2), (0, 4)), ((2, 4), (0, 2))]
    """
    shared = intersection(region, hole)
    if shared is None:
        return [region]
    pieces, rest = [], list(region)
    for dimension, (start, stop) in enumerate(shared):
        first, last = rest[dimension]
        for part in ((first, start), (stop, last)):
            if part[0] < part[1]:
                pieces.append((*rest[:dimension], part, *rest[dimension + 1 :]))
        rest[dimension] = (start, stop)
    return pieces


def relative(region: Region, outer: Region) -> Region:
    """A region inside another, as a region of that one's own tensor."""
    return tuple(
        (start - first, stop - first)
        for (start, stop), (first, _) in zip(region, outer, strict=True)
    )


@dataclass(eq=False)
class WeightSlice:
    """A part of a parameter that is trained as a tensor of its own.

    Attributes:
        name: The parameter's name.
        owner: The parameter.
        region: The part of it.
        leaf: A parameter that is a view of the owner's memory; the owner itself where the part
            is the whole.
        views: Of the optimizer's state for the owner, by name: the whole tensor and the part.
    """

    name: str
    owner: nn.Parameter
    region: Region
    leaf: nn.Parameter
    views: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, owner: nn.Parameter, region: Region) -> WeightSlice:
        """The slice of a region of a parameter."""
        part = owner.detach()[index_of(region)]
        is_whole = part.shape == owner.shape
        leaf = owner if is_whole else nn.Parameter(part, owner.requires_grad)
        return cls(name, owner, region, leaf)

    @property
    def numel(self) -> int:
        """Number of its elements."""
        return self.leaf.numel()

    def view(self, key: str, whole: torch.Tensor) -> torch.Tensor:
        """The part of a tensor that the optimizer keeps for the owner, of the owner's shape."""
        known = self.views.get(key)
        if known is None or known[0] is not whole:
            known = self.views[key] = whole, whole[index_of(self.region)]
        return known[1]


def disjoint(slices: Iterable[WeightSlice]) -> list[tuple[Region, WeightSlice]]:
    """The union of slices of one parameter, as regions that do not overlap.

    Returns:
        Every region with a slice that it lies in; their order depends on the regions alone.
    """
    found: list[tuple[Region, WeightSlice]] = []
    # Of nested slices the outermost is all.
    for part in sorted(slices, key=lambda part: (-part.numel, part.region)):
        pieces = [part.region]
        for taken, _ in found:
            pieces = [rest for piece in pieces for rest in without(piece, taken)]
        found += [(piece, part) for piece in pieces]
    return found


def set_tensor(module: nn.Module, key: str, tensor: torch.Tensor) -> None:
    """Puts a tensor in the place of the one of that name."""
    path, _, last = key.rpartition('.')
    holder = module.get_submodule(path)
    kind = holder._parameters if last in holder._parameters else holder._buffers
    kind[last] = tensor


def unshared(module: nn.Module) -> nn.Module:
    """A copy of an Arch's layer, to be given other tensors; cheaper than to build one."""
    twin = module.__new__(type(module))
    twin.__dict__.update(
        (key, value.copy() if isinstance(value, (dict, set)) else value)
        for key, value in module.__dict__.items()
    )
    for key, parameter in module._parameters.items():
        if parameter is not None:
            twin._parameters[key] = nn.Parameter(parameter, parameter.requires_grad)
    for key, part in module._modules.items():
        twin._modules[key] = None if part is None else unshared(part)
    return twin


@dataclass(eq=False)
class SubnetLayer:
    """A layer of a subnet that runs on the super-supernet's own memory.

    Attributes:
        module: The layer; its parameters are leaves, its buffers are views.
        slices: The leaves, by their names in the module.
        owners: Every module of the layer, and the super-supernet's of that name.
        memory: Of every tensor of those: where it is found, itself, and its address.
        recomputed: Whether activation checkpointing computes it anew.
    """

    module: nn.Module
    slices: dict[str, WeightSlice]
    owners: list[tuple[nn.Module, nn.Module]]
    memory: list[tuple[dict[str, torch.Tensor], str, torch.Tensor, int]]
    recomputed: bool

    def is_current(self) -> bool:
        """Whether the super-supernet's tensors still lie where the views look."""
        return all(
            tensors.get(key) is tensor and tensor.data_ptr() == address
            for tensors, key, tensor, address in self.memory
        )

    def follow_owners(self) -> None:
        """What is frozen, or in eval mode, is so in the super-supernet's own modules."""
        for module, own in self.owners:
            if module.training != own.training:
                module.training = own.training
        for part in self.slices.values():
            if part.leaf.requires_grad != part.owner.requires_grad:
                part.leaf.requires_grad_(part.owner.requires_grad)
