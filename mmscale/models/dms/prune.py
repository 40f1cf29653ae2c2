"""Pruning: a network without the channels and blocks that masks have shut, as data and in fact."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from mmscale.arch.checks import check_keys, check_schema, integer
from mmscale.arch.json_files import read_json
from mmscale.errors import FOREIGN_ERRORS, UsageError
from mmscale.files import write_json
from mmscale.models.dms.groups import ChannelGroups
from mmscale.models.dms.layers import input_dimension, output_dimension, replace_submodule
from mmscale.models.dms.transformers import TUPLE_BLOCKS, full_name, set_counts

SCHEMA = 1
# Elements of a dimension.
_MOST = 2**20


# Names of attributes that remember widths, and the sides of layers that these are of.
_WIDTHS = {
    **dict.fromkeys(('in_channels', 'in_features', 'in_dims', 'inplanes', 'in_planes'), ('in',)),
    **dict.fromkeys(
        ('out_channels', 'out_features', 'out_dims', 'planes', 'out_planes'), ('out',)
    ),
    **dict.fromkeys(('channels', 'mid_channels', 'feedforward_channels', 'width'), ('in', 'out')),
    **dict.fromkeys(('embed_dims', 'num_features', 'dim'), ('in', 'out')),
    'groups': ('groups',),
}


class Skip(nn.Module):
    """Stands where a block was: hands on its first argument.

    Args:
        block: The block; what it says of itself in plain values stays, as callers may ask for it.
        as_tuple: How many of its arguments in a tuple, as the block did; 0 for none.
    """

    def __init__(self, block: nn.Module, as_tuple: int = 0) -> None:
        super().__init__()
        for name, value in vars(block).items():
            if not name.startswith('_') and isinstance(value, str | int | float | tuple):
                setattr(self, name, value)
        self.as_tuple = as_tuple

    def forward(self, x: torch.Tensor, *others: Any, **_: Any) -> torch.Tensor | tuple[Any, ...]:
        """Returns x."""
        return (x, *others)[: self.as_tuple] if self.as_tuple else x


def _check_indices(owner: str, indices: object) -> None:
    if not isinstance(indices, list):
        raise UsageError(f'{owner}={indices!r:.60} must be a list of indices')
    for index in indices:
        if type(index) is not int or not 0 <= index < _MOST:
            raise UsageError(f'{owner}: {index!r:.60} must be an index in 0..{_MOST - 1}')


def _check_place(owner: str, place: str) -> None:
    if place not in ('in', 'out') and not re.fullmatch('-?[0-9]', place):
        raise UsageError(f'{owner}: {place!r:.60} is neither in, out nor a dimension')


@dataclass(frozen=True)
class Pruning:
    """What stays of a network, complete enough to prune it again from its config alone.

    Attributes:
        keep: Indices of the elements that stay, by the groups' names.
        slices: Indices that stay of the dimensions of layers and parameters, by their names:
            ``out`` and ``in`` of layers, a number of parameters.
        removed: Names of the blocks that go.
        counts: New values of attributes, by module and attribute.
    """

    keep: dict[str, list[int]]
    slices: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns it as a mapping of plain lists, numbers and strings."""
        return {'schema': SCHEMA, **self.__dict__}

    @classmethod
    def from_json(cls, source: str | Path | Mapping) -> Pruning:
        """Reads it from a JSON file or from the object in one.

        Raises:
            ValueError: It is no such file, or of another schema.
        """
        owner = 'pruned'
        if not isinstance(source, Mapping):
            owner, source = str(source), read_json(source)
        names = tuple(cls.__dataclass_fields__)
        data = check_keys(owner, source, (), ('schema', *names))
        check_schema(owner, data.pop('schema'), SCHEMA)
        removed = data['removed']
        if not isinstance(removed, list) or not all(isinstance(name, str) for name in removed):
            raise UsageError(f'{owner}: removed={removed!r:.60} must be a list of names')
        for name, indices in check_keys(f'{owner}: keep', data['keep'], None).items():
            _check_indices(f'{owner}: keep.{name!s:.60}', indices)
        for part in ('slices', 'counts'):
            for name, places in check_keys(f'{owner}: {part}', data[part], None).items():
                where = f'{owner}: {part}.{name!s:.60}'
                for key, value in check_keys(where, places, None).items():
                    if part == 'slices':
                        _check_indices(f'{where}.{key!s:.60}', value)
                        _check_place(where, key)
                    else:
                        integer(f'{where}.{key!s:.60}', value, 1, _MOST)
        return cls(**data)

    def save(self, path: str | Path) -> None:
        """Writes it as a JSON file that :meth:`from_json` reads."""
        write_json(path, self.to_json())


def _indices(name: str, indices: object) -> list[int]:
    """Indices of a group as integers; a mask or a fraction among them would mean others.

    Raises:
        UsageError: They are none, or one comes twice.
    """
    found = indices.tolist() if hasattr(indices, 'tolist') else indices
    if not isinstance(found, Iterable) or isinstance(found, (str, Mapping)):
        found = [found]
    found = [int(i) if isinstance(i, Integral) and not isinstance(i, bool) else i for i in found]
    if any(type(i) is not int for i in found) or len(set(found)) < len(found):
        raise UsageError(
            f'keep: {name}={found!r:.60} must be a list of indices: integers, each once'
        )
    return found


def plan_pruning(
    model: nn.Module, groups: ChannelGroups, keep: Mapping[str, Sequence[int]]
) -> Pruning:
    """What pruning does to each layer.

    Args:
        model: The network.
        groups: What can go.
        keep: Indices of the elements that stay, by the groups' names; groups that are not
            named stay whole.

    Raises:
        ValueError: A name is of no group, an index is none of it, or nothing would stay.
    """
    kept = {}
    for name, indices in keep.items():
        if name not in groups.by_name:
            raise UsageError(f'keep: there is no group {name}')
        group = groups.by_name[name]
        kept[name] = sorted(_indices(name, indices))
        if any(not 0 <= index < group.size for index in kept[name]):
            raise UsageError(f'keep: {name} has elements 0..{group.size - 1}, not {kept[name]}')
        if not kept[name] and group in groups.widths:
            raise UsageError(f'keep: nothing of {name} would stay')
    removed = [
        block
        for depth in groups.depths
        for index, block in enumerate(depth.blocks)
        if depth.name in kept and index not in kept[depth.name]
    ]
    gone = tuple(f'{block}.' for block in removed)
    layers = dict(model.named_modules())
    stays: dict[tuple[str, str], np.ndarray] = {}
    for group, member in groups.members:
        if group.name not in kept or member.module.startswith(gone):
            continue
        if member.dim is not None:
            owner, _, tensor = member.module.rpartition('.')
            place = str(member.dim)
            size = getattr(layers[owner], tensor).shape[member.dim]
        else:
            layer = layers[member.module]
            if getattr(layer, 'weight', None) is None:
                continue  # Its parameters are members of their own.
            place = 'in' if member.role == 'in' else 'out'
            size = (input_dimension if place == 'in' else output_dimension)(layer)[1]
        channels = stays.setdefault((member.module, place), np.ones(size, dtype=bool))
        dropped = np.setdiff1d(np.arange(group.size), kept[group.name])
        channels[member.indices[dropped]] = False
    slices: dict[str, dict[str, list[int]]] = {}
    for (name, place), channels in stays.items():
        if not channels.all():
            slices.setdefault(name, {})[place] = np.flatnonzero(channels).tolist()
    counts: dict[str, dict[str, int]] = {}
    for group in groups.widths:
        for module, attribute, multiple in group.counts:
            if group.name in kept and not f'{module}.'.startswith(gone):
                new = multiple * len(kept[group.name])
                counts.setdefault(module, {})[attribute] = new
    for module, widths in _remembered(layers, slices, gone).items():
        counts[module] = widths | counts.get(module, {})
    return Pruning(kept, slices, removed, counts)


def _remembered(
    layers: Mapping[str, nn.Module],
    slices: Mapping[str, Mapping[str, list[int]]],
    gone: tuple[str, ...],
) -> dict[str, dict[str, int]]:
    """Attributes in which modules remember widths of the layers inside them, and the new values.

    What forward passes and ``switch_to_deploy()`` of some networks rely on. A number is taken for
    a width where all layers inside that have had it get the same one, of their inputs where the
    name says so, and likewise of their outputs.
    """
    owners = {
        name.rsplit('.', steps)[0] if name.count('.') >= steps else ''
        for name in slices
        for steps in range(1, name.count('.') + 2)
    }
    found: dict[str, dict[str, int]] = {}
    for owner in sorted(owners - slices.keys()):
        if owner not in layers or f'{owner}.'.startswith(gone):
            continue
        numbers = {
            name: value
            for name, value in vars(layers[owner]).items()
            if name in _WIDTHS and type(value) is int and value > 1
        }
        if not numbers:
            continue
        prefix = f'{owner}.' if owner else ''
        changes = [
            change
            for name, layer in layers.items()
            if name.startswith(prefix) and not name.startswith(gone)
            for change in _changes(layer, slices.get(name, {}))
        ]
        for attribute, value in numbers.items():
            sides = _WIDTHS[attribute]
            new = {after for side, before, after in changes if side in sides and before == value}
            if len(new) == 1 and new != {value}:
                found.setdefault(owner, {})[attribute] = new.pop()
    return found


def _changes(layer: nn.Module, places: Mapping[str, list[int]]) -> Iterator[tuple[str, int, int]]:
    """Side, width and new width of a layer; ``groups`` is a side of depthwise convolutions."""
    if isinstance(layer, _ConvNd) and layer.groups == layer.in_channels == layer.out_channels:
        new = len(places.get('out', range(layer.groups)))
        yield from ((side, layer.groups, new) for side in ('groups', 'in', 'out'))
        return
    for side, width in (('in', input_dimension), ('out', output_dimension)):
        if isinstance(getattr(layer, 'weight', None), torch.Tensor):
            try:
                old = width(layer)[1]
            except UsageError:
                continue
            yield side, old, len(places.get(side, range(old)))


@torch.no_grad()
def apply_pruning(model: nn.Module, pruning: Pruning) -> nn.Module:
    """Makes a network smaller, in place; returns it.

    Raises:
        ValueError: It has not the layers or the channels that are to be sliced.
    """
    # One tensor that several layers share is sliced once, so that they go on sharing it.
    done: dict[tuple, nn.Parameter] = {}
    place = ''
    try:
        for name, places in pruning.slices.items():
            place = f'slices.{name}'
            owner, _, last = name.rpartition('.')
            if not places.keys() <= {'in', 'out'}:
                for dim, indices in places.items():
                    _slice(model.get_submodule(owner), last, int(dim), indices, done)
                continue
            _slice_layer(model.get_submodule(name), places.get('out'), places.get('in'), done)
        for name in pruning.removed:
            place = f'removed: {name}'
            block = model.get_submodule(name)
            replace_submodule(
                model, name, Skip(block, TUPLE_BLOCKS.get(full_name(type(block)), 0))
            )
        for name, counts in pruning.counts.items():
            place = f'counts.{name}'
            set_counts(model.get_submodule(name), counts)
    except FOREIGN_ERRORS as error:
        raise UsageError(
            f'{type(model).__name__} does not fit its pruning: {place:.80}: {error!s:.200}'
        ) from error
    return model


def _slice(
    owner: nn.Module, name: str, dim: int, indices: Sequence[int], done: dict[tuple, nn.Parameter]
) -> None:
    """Keeps these indices of a dimension of a parameter or buffer."""
    old = getattr(owner, name, None)
    if old is None:
        return
    key = (id(old), dim % old.dim(), tuple(indices))
    if isinstance(old, nn.Parameter):
        if key not in done:
            index = torch.tensor(indices, device=old.device)
            new = nn.Parameter(old.detach().index_select(dim, index), old.requires_grad)
            # The old tensor is kept beside it, so that its id stays its own.
            done[key] = new, old
        setattr(owner, name, done[key][0])
    else:
        owner.register_buffer(
            name,
            old.index_select(dim, torch.tensor(indices, device=old.device)),
            persistent=name not in owner._non_persistent_buffers_set,
        )


def _slice_layer(
    layer: nn.Module,
    outputs: Sequence[int] | None,
    inputs: Sequence[int] | None,
    done: dict[tuple, nn.Parameter],
) -> None:
    """Keeps these outputs and inputs of a layer."""
    if isinstance(layer, _ConvNd) and layer.groups > 1:
        _slice_grouped(layer, outputs, inputs, done)
        return
    if inputs is not None:
        _slice(layer, 'weight', input_dimension(layer)[0], inputs, done)
    if outputs is not None:
        dim, size = output_dimension(layer)
        _slice(layer, 'weight', dim, outputs, done)
        for name in ('bias', 'running_mean', 'running_var'):
            tensor = getattr(layer, name, None)
            if isinstance(tensor, torch.Tensor) and tensor.shape == (size,):
                _slice(layer, name, 0, outputs, done)
    _set_widths(layer)


def _slice_grouped(
    layer: _ConvNd,
    outputs: Sequence[int] | None,
    inputs: Sequence[int] | None,
    done: dict[tuple, nn.Parameter],
) -> None:
    """As _slice_layer; depthwise convolutions lose groups, others channels of every group."""
    if layer.groups == layer.in_channels == layer.out_channels:
        _slice(layer, 'weight', 0, outputs, done)
        _slice(layer, 'bias', 0, outputs, done)
        layer.groups = layer.in_channels = layer.out_channels = len(outputs)
        return
    if inputs is not None:
        size = layer.in_channels // layer.groups
        parts = [[i % size for i in inputs if i // size == part] for part in range(layer.groups)]
        if any(part != parts[0] for part in parts):
            raise IndexError('the groups of a convolution must keep the same inputs')
        _slice(layer, 'weight', 1, parts[0], done)
        layer.in_channels = len(inputs)
    if outputs is not None:
        size = layer.out_channels // layer.groups
        if len({sum(i // size == part for i in outputs) for part in range(layer.groups)}) > 1:
            raise IndexError('the groups of a convolution must keep as many outputs each')
        _slice(layer, 'weight', 0, outputs, done)
        _slice(layer, 'bias', 0, outputs, done)
        layer.out_channels = len(outputs)


def _set_widths(layer: nn.Module) -> None:
    """Makes a layer's attributes agree with its tensors."""
    weight = layer.weight
    if isinstance(layer, (_ConvNd, nn.Linear)):
        inputs, outputs = input_dimension(layer)[0], output_dimension(layer)[0]
        kind = 'channels' if isinstance(layer, _ConvNd) else 'features'
        setattr(layer, f'in_{kind}', weight.shape[inputs])
        setattr(layer, f'out_{kind}', weight.shape[outputs])
    elif isinstance(layer, nn.Embedding):
        layer.embedding_dim = weight.shape[1]
    elif hasattr(layer, 'normalized_shape'):
        layer.normalized_shape = tuple(weight.shape)
    for attribute, dim in (('num_features', 0), ('num_channels', 0), ('nf', 1), ('nx', 0)):
        if isinstance(getattr(layer, attribute, None), int) and weight.dim() > dim:
            setattr(layer, attribute, weight.shape[dim])
