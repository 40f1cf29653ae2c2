"""What the groupers of transformers are made of: residual streams, attention and MLPs."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from mmscale.errors import UsageError
from mmscale.models.dms.groups import ChannelGroup, Member, runs, slots
from mmscale.models.dms.layers import input_dimension, output_dimension

Consumers = tuple[str, ...] | None

# Linear layers of an MLP one after the other, by their names in it.
_CHAINS = (('fc1', 'fc2', 'fc3'), ('c_fc', 'c_proj'), ('dense_h_to_4h', 'dense_4h_to_h'))
_GATED = ('gate_proj', 'up_proj', 'down_proj')


def found(model: nn.Module, name: str) -> object:
    """The module or parameter of that dotted name, None if there is none."""
    for part in name.split('.'):
        model = getattr(model, part, None)
    return model


class Stream:
    """A residual stream, its width gathered member by member.

    Args:
        model: The model.
        name: Of the group.
        size: Number of channels.
    """

    def __init__(self, model: nn.Module, name: str, size: int) -> None:
        self.model = model
        self.name = name
        self.size = size
        self.members: list[Member] = []

    def add(self, role: str, *names: str, repeats: int = 1) -> None:
        """Adds layers, and parameters whose last dimension is the stream's.

        What the model has not, or only as Identity, is left out.
        """
        for name in names:
            part = found(self.model, name)
            dim = -1 if isinstance(part, nn.Parameter) else None
            if dim is not None or isinstance(getattr(part, 'weight', None), torch.Tensor):
                self.members.append(Member(name, role, runs(self.size, repeats), dim))

    def groups(self, consumers: Consumers, *counts: tuple[str, str, int]) -> list[ChannelGroup]:
        """The stream as a group, or none if unknown layers use it."""
        if consumers == ():
            return []
        after = [Member(name, 'in', runs(self.size)) for name in consumers or ()]
        members = (*self.members, *after)
        return [ChannelGroup(self.name, self.size, members, 'embedding', counts)]


def places(indices: np.ndarray, turned: bool = False) -> np.ndarray:
    """The places in heads as elements, from channels by head and place, shape (..., size).

    Args:
        indices: The channels.
        turned: Whether two places are one element, as a rotary embedding turns them together:
            each of the first half with the same of the second.
    """
    if turned:
        indices = indices.reshape(*indices.shape[:-1], 2, -1)
    return np.moveaxis(indices, -1, 0).reshape(indices.shape[-1], -1)


@dataclass(frozen=True, eq=False)
class Attention:
    """Where the heads of an attention lie: layers, and channels by head and place.

    Channels have the shape (heads, size); where heads of keys and values serve several queries,
    those of queries and outputs (heads, queries, size).

    Attributes:
        name: Of the attention.
        query: Name of the layer that makes queries, and channels of its outputs.
        key: The same of keys.
        value: The same of values.
        output: The layer that takes what attention gives, and channels of its inputs.
    """

    name: str
    query: tuple[str, np.ndarray]
    key: tuple[str, np.ndarray]
    value: tuple[str, np.ndarray]
    output: tuple[str, np.ndarray]

    @classmethod
    def fused(
        cls,
        model: nn.Module,
        name: str,
        heads: int,
        layer: str = 'qkv',
        output: str = 'proj',
        by_head: bool = False,
    ) -> Attention:
        """Attention with one linear layer for queries, keys and values.

        Args:
            model: The model.
            name: Of the attention.
            heads: Number of heads.
            layer: Name of that layer, in the attention.
            output: Name of the layer after attention, in it.
            by_head: Whether queries, keys and values come head by head, instead of one after
                the other for all heads.
        """
        layer, output = f'{name}.{layer}', f'{name}.{output}'
        rows = np.arange(output_dimension(model.get_submodule(layer))[1])
        inner = np.arange(input_dimension(model.get_submodule(output))[1]).reshape(heads, -1)
        ends = np.cumsum([(rows.size - inner.size) // 2] * 2)
        if by_head:
            query, key, value = np.split(rows.reshape(heads, -1), ends // heads, axis=1)
        else:
            parts = np.split(rows, ends)
            query, key, value = (part.reshape(heads, -1) for part in parts)
        return cls(name, (layer, query), (layer, key), (layer, value), (output, inner))

    @classmethod
    def separate(
        cls, model: nn.Module, name: str, heads: int, layers: tuple[str, str, str], output: str
    ) -> Attention:
        """Attention with a linear layer each for queries, keys and values.

        Args:
            model: The model.
            name: Of the attention.
            heads: Number of heads of keys and values.
            layers: Names of these layers, in the attention.
            output: Whole name of the layer after attention.
        """
        query, key, value = (f'{name}.{layer}' for layer in layers)
        sizes = {layer: output_dimension(model.get_submodule(layer))[1] for layer in (key, value)}
        sizes[query] = output_dimension(model.get_submodule(query))[1]
        sizes[output] = input_dimension(model.get_submodule(output))[1]
        shared = sizes[query] // sizes[key]

        def rows(layer: str, *shape: int) -> tuple[str, np.ndarray]:
            return layer, np.arange(sizes[layer]).reshape(heads, *shape, -1)

        return cls(name, rows(query, shared), rows(key), rows(value), rows(output, shared))

    def heads(self, *others: Member, count: str | None = None) -> ChannelGroup:
        """The group of its heads: those of keys and values with the queries that share them."""
        size = len(self.key[1])
        members = [
            Member(layer, role, indices.reshape(size, -1))
            for role, (layer, indices) in (
                *(('out', part) for part in (self.query, self.key, self.value)),
                ('in', self.output),
            )
        ]
        counts = () if count is None else ((self.name, count, 1),)
        return ChannelGroup(f'{self.name}.heads', size, (*members, *others), 'heads', counts)

    def turned_members(self, some: slice = slice(None), turned: bool = True) -> list[Member]:
        """Members of places in queries and keys, two of which a rotary embedding turns."""
        (query, of_query), (key, of_key) = self.query, self.key
        return [
            Member(query, 'out', places(of_query[..., some], turned)),
            # In their product with queries no layer consumes keys.
            Member(key, 'out', places(of_key[..., some], turned), masks_output=True),
        ]

    def query_size(self, *others: Member, count: str, some: slice = slice(None)) -> ChannelGroup:
        """The group of places in queries and keys."""
        members = (*self.turned_members(some, turned=False), *others)
        size = len(members[0].indices)
        counts = ((self.name, count, 1),)
        return ChannelGroup(f'{self.name}.qk_size', size, members, 'qk_size', counts)

    def value_size(self, *others: Member, count: str) -> ChannelGroup:
        """The group of places in values."""
        (value, of_value), (output, of_output) = self.value, self.output
        members = (
            Member(value, 'out', places(of_value)),
            Member(output, 'in', places(of_output)),
            *others,
        )
        size, counts = of_value.shape[-1], ((self.name, count, 1),)
        return ChannelGroup(f'{self.name}.v_size', size, members, 'v_size', counts)


@dataclass(frozen=True, eq=False)
class MLP:
    """An MLP: its hidden widths, and the names of its first layers and of its last one."""

    groups: list[ChannelGroup]
    firsts: tuple[str, ...]
    last: str


def hidden_width(
    model: nn.Module, name: str, makers: tuple[str, ...], consumer: str
) -> ChannelGroup:
    """The group of a hidden width, between linear layers that make it and the one that uses it."""
    size = input_dimension(model.get_submodule(consumer))[1]
    members = [Member(maker, 'out', runs(size)) for maker in makers]
    return ChannelGroup(name, size, (*members, Member(consumer, 'in', runs(size))))


def _linear_chain(mlp: nn.Module) -> list[str]:
    """Names of linear layers each of which fits the one before, none where one does not.

    That they follow each other in truth is only to be known by a trial.
    """
    layers = {name: part for name, part in mlp.named_children() if list(part.parameters())}
    fits = all(isinstance(layer, nn.Linear) for layer in layers.values()) and all(
        one.out_features == other.in_features for one, other in pairwise(layers.values())
    )
    return list(layers) if fits else []


def mlp_of(model: nn.Module, name: str, title: str | None = None) -> MLP:
    """What is known of an MLP by the names of its layers, whatever its class.

    Args:
        model: The model.
        name: Of the MLP, or of the block that its layers lie in.
        title: What its group is called; its own name by default.

    Raises:
        UsageError: Its form is not known.
    """
    mlp, title = model.get_submodule(name), title or name
    parts = set(mlp._modules)
    if {'w12', 'w3'} <= parts:  # mmpretrain's SwiGLU
        size = mlp.w3.in_features
        members = [Member(f'{name}.w12', 'out', slots(size, 2))]
        if isinstance(mlp._modules.get('norm'), nn.LayerNorm):
            members.append(Member(f'{name}.norm', 'norm', runs(size)))
        members.append(Member(f'{name}.w3', 'in', runs(size)))
        return MLP([ChannelGroup(title, size, tuple(members))], (f'{name}.w12',), f'{name}.w3')
    if parts.issuperset(_GATED):
        *makers, consumer = (f'{name}.{part}' for part in _GATED)
        return MLP([hidden_width(model, title, tuple(makers), consumer)], tuple(makers), consumer)
    chain: list[str] = []
    if 'layers' in parts and hasattr(mlp, 'num_fcs'):  # MMCV's FFN
        last = mlp.num_fcs - 1
        chain = [*(f'layers.{i}.0' for i in range(last)), f'layers.{last}']
    for names in _CHAINS:
        chain = chain or [part for part in names if names[0] in parts and part in parts]
    if len(chain) < 2:
        chain = _linear_chain(mlp)
    if len(chain) < 2:
        raise UsageError(f'{name}: the layers of a {type(mlp).__name__} are not known')
    groups = [
        hidden_width(
            model, f'{title}.{i}' if i else title, (f'{name}.{maker}',), f'{name}.{consumer}'
        )
        for i, (maker, consumer) in enumerate(pairwise(chain))
    ]
    return MLP(groups, (f'{name}.{chain[0]}',), f'{name}.{chain[-1]}')
