"""Channel groups of models that do not declare them, from Torch-Pruning's dependency graph."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils._pytree import tree_leaves

from mmscale.errors import FOREIGN_ERRORS, UsageError, one_line
from mmscale.models.dms.groups import ChannelGroup, ChannelGroups, Member
from mmscale.models.dms.residual import depth_groups
from mmscale.models.dms.trial import sound_groups

_DECLARE = (
    'declare its groups with mmscale.models.dms.declare_groups(network, grouper), as '
    'mmscale/models/dms/transformers.py does for transformers'
)


def traced_groups(model: nn.Module, inputs: Sequence[torch.Tensor]) -> ChannelGroups:
    """What a model can lose, found by following one forward pass.

    Widths that reach an output of the model stay. So do those whose pruning turns out to change
    more than their masks do: a warning names them.

    Args:
        model: Any model of convolutions, linear and norm layers; it is left as it is.
        inputs: Positional arguments of one forward pass.

    Raises:
        ValueError: Torch-Pruning is not installed, or does not understand the model.
    """
    try:
        import torch_pruning
    except ImportError:
        raise UsageError(
            f'{type(model).__name__}: finding its channel groups needs Torch-Pruning: '
            'pip install torch-pruning'
        ) from None
    graph = torch_pruning.DependencyGraph()
    # Its own pruner would do: groups are all that is asked of it.
    layer_norm = torch_pruning.PrunerBox[torch_pruning.ops.OPTYPE.LN]
    graph.register_customized_layer(nn.RMSNorm, layer_norm)
    leaving: set[Any] = set()

    def forward(twin: nn.Module, inputs: Sequence[torch.Tensor]) -> Any:
        # Not before: networks with frozen stages freeze them again with every change of mode.
        output = twin.requires_grad_(True)(*inputs)
        leaving.update(leaf.grad_fn for leaf in tree_leaves(output) if torch.is_tensor(leaf))
        return output

    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter('ignore')
            # On a copy, with all weights trainable: frozen ones would hide groups.
            twin = copy.deepcopy(model)
            graph.build_dependency(twin, list(inputs), forward_fn=forward, verbose=False)
            found = list(graph.get_all_groups())
    except FOREIGN_ERRORS as error:
        raise UsageError(
            f'{type(model).__name__} cannot be traced ({one_line(error):.200}); {_DECLARE}'
        ) from error
    unseen = [
        name
        for name, module in twin.named_modules()
        if isinstance(module, (_ConvNd, nn.Linear)) and module not in graph.module2node
    ]
    if unseen:
        raise UsageError(
            f'{type(model).__name__} cannot be traced: {", ".join(unseen[:5])} took no part in '
            f'the forward pass, so it is not known what they share; {_DECLARE}'
        )
    order = {name: number for number, (name, _) in enumerate(twin.named_modules())}
    names = {module: name for name, module in twin.named_modules()}
    names |= {parameter: name for name, parameter in twin.named_parameters()}
    widths: dict[str, ChannelGroup] = {}
    for group in found:
        if not any(
            dep.target.grad_fn in leaving and graph.is_out_channel_pruning_fn(dep.handler)
            for dep, _ in group
        ):
            width = _group(graph, group, names, order, widths.keys())
            if width is not None:
                widths[width.name] = width
    groups = ChannelGroups(
        tuple(sorted(widths.values(), key=lambda group: order[group.name])),
        depth_groups(model, inputs),
    )
    sound = sound_groups(model, groups, inputs)
    lost = [name for name in groups.by_name if name not in sound.by_name]
    if lost:
        warnings.warn(
            f'{type(model).__name__}: {len(lost)} of {len(groups.all)} groups stay whole, as '
            'something works on their channels that tracing does not understand: '
            f'{", ".join(lost[:5])}{", ..." * (len(lost) > 5)}; to prune them, {_DECLARE}',
            stacklevel=3,
        )
    return sound


def _role(layer: nn.Module | nn.Parameter, makes: bool) -> str | None:
    """Role of a layer whose outputs (or else inputs) are in a group; None if it has to stay."""
    if isinstance(layer, nn.Parameter):
        return 'through'
    if getattr(layer, 'weight', None) is None:
        return None
    if isinstance(layer, _ConvNd) and layer.groups > 1:
        if layer.groups == layer.in_channels:
            return 'through' if layer.groups == layer.out_channels else None
        return 'out' if makes else 'in'
    if isinstance(layer, (_ConvNd, nn.Linear, nn.Embedding)):
        return 'out' if makes else 'in'
    if isinstance(layer, (_BatchNorm, _InstanceNorm, nn.PReLU)):
        return 'through'
    if isinstance(layer, (nn.LayerNorm, nn.RMSNorm)) and len(layer.normalized_shape) == 1:
        return 'norm'
    return None


@dataclass
class _Place:
    """What one layer has of a group: channels by element of the group's root."""

    role: str
    dim: int | None = None
    parts: int = 1
    channels: dict[int, set[int]] = field(default_factory=dict)


def _places(graph: Any, found: Iterable[Any], names: dict[Any, str]) -> dict[tuple, _Place] | None:
    """Where a group of Torch-Pruning's lies, or None if a layer in it has to keep its width."""
    places: dict[tuple, _Place] = {}
    for item in found:
        layer = item.dep.target.module
        if layer not in names:
            continue  # an operation, or a part of the model without weights
        if isinstance(layer, nn.PReLU) and layer.num_parameters == 1:
            continue  # one slope for all channels
        role = _role(layer, graph.is_out_channel_pruning_fn(item.dep.handler))
        if role is None:
            return None
        place = _Place(role)
        if isinstance(layer, nn.Parameter):
            place.dim = item.dep.target.pruning_dim - layer.dim()
        elif role in ('out', 'in'):
            place.parts = getattr(layer, 'groups', 1)
        place = places.setdefault((names[layer], role), place)
        for root, channel in zip(item.root_idxs, item.idxs, strict=True):
            place.channels.setdefault(root, set()).add(channel)
    return places


def _one_by_one(graph: Any, found: Any) -> Iterator[Any]:
    """A group found from each of its root's channels alone.

    Torch-Pruning forgets, of a group as a whole, that two channels of the root lead to one place
    (halves that are multiplied with each other); from one channel it finds all that goes with it.
    """
    root = found[0].dep
    for channel in found[0].idxs:
        for item in graph.get_pruning_group(root.target.module, root.handler, [channel]):
            item.root_idxs = [channel] * len(item.idxs)
            yield item


def _group(
    graph: Any, found: Any, names: dict[Any, str], order: dict[str, int], taken: Collection[str]
) -> ChannelGroup | None:
    """A group of Torch-Pruning's as ours, or None if its width has to stay.

    It is named after the first layer that makes its channels, and no other's: parts of a layer's
    outputs may be groups of their own.
    """
    places = _places(graph, found, names)
    if not places or not any(role == 'in' for _, role in places):
        return None
    members = _members(places)
    if members is None:
        members = _members(_places(graph, _one_by_one(graph, found), names))
    if members is None:
        return None
    members.sort(key=lambda member: order.get(member.module, len(order)))
    makers = [member.module for member in members if member.role == 'out']
    name = next((maker for maker in makers if maker not in taken), None)
    if name is None:
        return None
    return ChannelGroup(name, len(members[0].indices), tuple(members))


def _members(places: dict[tuple, _Place]) -> list[Member] | None:
    """Members of a group, or None if its elements are not all alike."""
    elements = _elements(list(places.values()))
    members = []
    for (name, role), place in places.items():
        rows = [sorted(set().union(*(place.channels.get(r, ()) for r in e))) for e in elements]
        if len({len(row) for row in rows}) != 1 or not rows[0]:
            return None
        members.append(Member(name, role, np.array(rows), place.dim))
    return members


def _elements(places: list[_Place]) -> list[list[int]]:
    """Elements of the root that can only go together, as they share a channel somewhere.

    The groups of a convolution lose the same slots, so that they stay equal.
    """
    roots = sorted(set().union(*(place.channels for place in places)))
    leader = {root: root for root in roots}

    def find(root: int) -> int:
        while leader[root] != root:
            leader[root] = root = leader[leader[root]]
        return root

    for place in places:
        width = max(max(channels) for channels in place.channels.values()) + 1
        owner: dict[int, int] = {}
        for root, channels in place.channels.items():
            for channel in channels:
                first = find(owner.setdefault(channel % (width // place.parts), root))
                leader[find(root)] = first
    elements: dict[int, list[int]] = {}
    for root in roots:
        elements.setdefault(find(root), []).append(root)
    return list(elements.values())
