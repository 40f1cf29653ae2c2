"""Walks through Torch-Pruning's dependency graph: where the channels of a layer lead to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from torch import nn
from torch.nn.modules.conv import _ConvNd

from mmscale.errors import FOREIGN_ERRORS


class _Index(NamedTuple):
    """A channel as Torch-Pruning's mappings of indices take it, and what it comes from."""

    idx: int
    root_idx: int


class _Sets:
    """Disjoint sets of the integers 0 to size - 1."""

    def __init__(self, size: int) -> None:
        self._leader = list(range(size))

    def find(self, item: int) -> int:
        """The first of the set that an integer is in, which stands for it."""
        leader = self._leader
        while leader[item] != item:
            leader[item] = item = leader[leader[item]]
        return item

    def join(self, one: int, other: int) -> None:
        """Makes one set of two."""
        one, other = sorted((self.find(one), self.find(other)))
        self._leader[other] = one


@dataclass
class Reached:
    """What channels of a layer lead to.

    Attributes:
        node: The node of the graph: of a layer, a parameter or an operation.
        makes: Whether its outputs are meant, and not its inputs.
        owners: A channel of the layer that each of its channels comes from; -1 for none.
    """

    node: Any
    makes: bool
    owners: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))


@dataclass
class Walk:
    """All that the channels of one layer lead to.

    Attributes:
        root: The layer.
        reached: What they lead to, the layer itself first.
        is_whole: Whether no channel was lost on the way, as happens where operations are not
            understood.
    """

    root: nn.Module
    reached: list[Reached]
    is_whole: bool
    sets: _Sets

    def elements(self, slots_of: Callable[[Reached], int]) -> list[list[int]]:
        """Channels of the layer that can only go together, as they share a channel somewhere.

        Args:
            slots_of: Channels of each group of a convolution, 0 of other layers: groups lose
                the same slots, so that they stay equal.
        """
        for place in self.reached:
            slots = slots_of(place)
            firsts: dict[int, int] = {}
            for channel, owner in enumerate(place.owners.tolist() if slots else ()):
                if owner >= 0:
                    self.sets.join(firsts.setdefault(channel % slots, owner), owner)
        found: dict[int, list[int]] = {}
        for channel in self.reached[0].owners.tolist():
            found.setdefault(self.sets.find(channel), []).append(channel)
        return list(found.values())


def map_indices(graph: Any) -> None:
    """Has each operation of a graph move channels as far as Torch-Pruning can tell how.

    Its own ``build_dependency`` ends with the first whose shape it gets wrong, as it does in
    networks that shuffle channels.

    Args:
        graph: A ``torch_pruning.DependencyGraph`` whose building ended so.
    """
    from torch_pruning.dependency.index_mapping import update_index_mapping

    nodes = graph.module2node
    for module, node in nodes.items():
        graph.module2node = {module: node}
        with suppress(ArithmeticError, LookupError):
            update_index_mapping(graph)
    graph.module2node = nodes


def walks(graph: Any) -> Iterator[Walk]:
    """A walk from every convolution and linear layer that no other walk has reached the end of.

    Torch-Pruning's own ``get_all_groups`` compares whole lists of indices, and goes in circles
    where an operation moves channels (shuffles, attention). Here each channel of each node is
    visited once: channels that meet are of one element from there on.

    Args:
        graph: A ``torch_pruning.DependencyGraph`` that is built.
    """
    limit = max((max(p.shape, default=1) for p in graph.model.parameters()), default=1)
    visited = set()
    for layer in list(graph.module2node):
        if not isinstance(layer, (_ConvNd, nn.Linear)) or layer in visited:
            continue
        walk = _walk(graph, layer, limit)
        visited.update(place.node.module for place in walk.reached if place.makes)
        yield walk


def _walk(graph: Any, layer: nn.Module, limit: int) -> Walk:
    """Follows the output channels of a layer; none has an index of `limit` or more."""
    pruner = graph.get_pruner_of_module(layer)
    channels = np.arange(pruner.get_out_channels(layer))
    sets = _Sets(len(channels))
    reached: dict[tuple[Any, Any], Reached] = {}
    is_whole = True
    stack = [(graph.module2node[layer], pruner.prune_out_channels, channels, channels)]
    while stack:
        node, function, indices, roots = stack.pop()
        inside = (indices >= 0) & (indices < limit)
        is_whole &= bool(inside.all())
        if not inside.any():
            continue
        place = reached.setdefault(
            (node, function), Reached(node, graph.is_out_channel_pruning_fn(function))
        )
        indices, roots = _arrive(place, indices[inside], roots[inside], sets)
        for edge in node.dependencies if indices.size else ():
            if edge.is_triggered_by(function):
                stack.append((edge.target, edge.handler, *_mapped(edge, indices, roots)))
    return Walk(layer, list(reached.values()), is_whole, sets)


def _arrive(
    place: Reached, indices: np.ndarray, roots: np.ndarray, sets: _Sets
) -> tuple[np.ndarray, np.ndarray]:
    """Notes channels at a place; returns those that come there for the first time."""
    if indices.size and indices.max() >= len(place.owners):
        missing = np.full(indices.max() + 1 - len(place.owners), -1)
        place.owners = np.concatenate([place.owners, missing])
    first, positions = np.unique(indices, return_index=True)
    new = place.owners[first] < 0
    first, positions = first[new], positions[new]
    place.owners[first] = roots[positions]
    for one, other in zip(place.owners[indices].tolist(), roots.tolist(), strict=True):
        if one != other:
            sets.join(one, other)
    return first, roots[positions]


def _mapped(edge: Any, indices: np.ndarray, roots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Channels behind an edge of the graph, and what they come from; -1 for those lost there."""
    for mapping in edge.index_mapping:
        if mapping is None:
            continue
        found = []
        # One by one, as some mappings forget where an index comes from.
        for index, root in zip(indices.tolist(), roots.tolist(), strict=True):
            try:
                found += [(new.idx, root) for new in mapping([_Index(index, root)])]
            except FOREIGN_ERRORS:
                found.append((-1, root))
        indices, roots = np.array(found, np.int64).reshape(-1, 2).T
    return indices, roots
