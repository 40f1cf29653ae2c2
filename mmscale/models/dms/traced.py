"""Channel groups of models that do not declare them, from Torch-Pruning's dependency graph."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from mmscale.errors import UsageError, one_line
from mmscale.models.dms.groups import ChannelGroup, ChannelGroups, Member
from mmscale.models.dms.residual import depth_groups
from mmscale.models.dms.trial import DECLARE, tried_groups
from mmscale.models.dms.walk import Reached, Walk, map_indices, walks


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
    tracing = _Tracing()
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter('ignore')
            # On a copy, with all weights trainable: frozen ones would hide groups.
            twin = copy.deepcopy(model)
            try:
                graph.build_dependency(twin, list(inputs), forward_fn=tracing.run, verbose=False)
            except (ArithmeticError, LookupError):
                if not hasattr(graph, 'module2node'):
                    raise  # the model's own
                map_indices(graph)
            found = list(walks(graph))
            depths = depth_groups(model, inputs)
    except Exception as error:  # whatever the model's own code raises
        raise UsageError(
            f'{type(model).__name__} cannot be traced ({one_line(error):.200}); {DECLARE}'
        ) from error
    unused = [
        name
        for name, module in twin.named_modules()
        if isinstance(module, (_ConvNd, nn.Linear))
        and not any(id(parameter) in tracing.used for parameter in module.parameters())
    ]
    if unused:
        raise UsageError(
            f'{type(model).__name__} cannot be traced: {", ".join(unused[:5])} took no part in '
            f'the forward pass, so it is not known what they share; {DECLARE}'
        )
    order = {name: number for number, (name, _) in enumerate(twin.named_modules())}
    names = {module: name for name, module in twin.named_modules()}
    names |= {parameter: name for name, parameter in twin.named_parameters()}
    widths: dict[str, ChannelGroup] = {}
    lost = []
    for walk in found:
        if any(place.makes and place.node.grad_fn in tracing.leaving for place in walk.reached):
            continue
        group = _group(walk, names, order, widths.keys())
        if group is not None:
            widths[group.name] = group
        else:
            lost.append(names[walk.root])
    groups = ChannelGroups(
        tuple(sorted(widths.values(), key=lambda group: order[group.name])), depths
    )
    by_function = [
        name
        for name, module in twin.named_modules()
        if isinstance(module, (_ConvNd, nn.Linear)) and module not in graph.module2node
    ]
    if by_function and not groups.all and not lost:
        warnings.warn(
            f'{type(model).__name__}: nothing can go, as layers are not called but their weights '
            f'given to functions, which is not followed: {", ".join(by_function[:5])}'
            f'{", ..." * (len(by_function) > 5)}; to prune them, call the layers or {DECLARE}',
            stacklevel=3,
        )
    return tried_groups(model, groups, inputs, lost)


class _Tracing(TorchFunctionMode):
    """Runs a model for Torch-Pruning, and notes what that does not.

    Attributes:
        leaving: Operations that give an output of the model.
        used: Identities of the tensors that operations were given: a layer's weight can be used
            by a function, without a call of the layer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.leaving: set[Any] = set()
        self.used: set[int] = set()

    def run(self, twin: nn.Module, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The outputs of a forward pass that have a gradient."""
        # Not before: networks with frozen stages freeze them again with every change of mode.
        twin.requires_grad_(True)
        with self:
            leaves = tree_leaves(twin(*inputs))
        outputs = [leaf for leaf in leaves if torch.is_tensor(leaf) and leaf.grad_fn is not None]
        if not outputs:
            raise UsageError('no output has a gradient, under torch.no_grad perhaps')
        self.leaving.update(output.grad_fn for output in outputs)
        return outputs

    def __torch_function__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        self.used.update(map(id, tree_leaves((args, kwargs))))
        return function(*args, **(kwargs or {}))


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


def _places(walk: Walk, names: dict[Any, str]) -> dict[tuple[str, str], Reached] | None:
    """Where the channels of a walk lie, or None if a layer in it has to keep its width."""
    places: dict[tuple[str, str], Reached] = {}
    for place in walk.reached:
        layer = place.node.module
        if layer not in names:
            continue  # an operation, or a part of the model without weights
        if isinstance(layer, nn.PReLU) and layer.num_parameters == 1:
            continue  # one slope for all channels
        role = _role(layer, place.makes)
        if role is None:
            return None
        places[names[layer], role] = place
    return places if any(role == 'in' for _, role in places) else None


def _slots(place: Reached) -> int:
    """Channels of each group of the convolution at a place; 0 of others, and of depthwise ones."""
    layer = place.node.module
    if not isinstance(layer, _ConvNd) or layer.groups == 1 or layer.groups == layer.in_channels:
        return 0
    return (layer.out_channels if place.makes else layer.in_channels) // layer.groups


def _group(
    walk: Walk, names: dict[Any, str], order: dict[str, int], taken: Collection[str]
) -> ChannelGroup | None:
    """What a walk has found as a group, or None if its elements cannot go one by one.

    It is named after the first layer that makes its channels, and no other's: parts of a layer's
    outputs may be groups of their own.
    """
    places = _places(walk, names)
    if places is None or not walk.is_whole:
        return None
    elements = walk.elements(_slots)
    if len(elements) == 1 < len(walk.reached[0].owners):
        return None
    members = []
    for (name, role), place in places.items():
        rows = _rows(place, elements)
        if rows is None:
            return None
        layer = place.node.module
        is_parameter = isinstance(layer, nn.Parameter)
        dim = place.node.pruning_dim - layer.dim() if is_parameter else None
        members.append(Member(name, role, rows, dim))
    members.sort(key=lambda member: order.get(member.module, len(order)))
    makers = [member.module for member in members if member.role == 'out']
    name = next((maker for maker in makers if maker not in taken), None)
    if name is None:
        return None
    return ChannelGroup(name, len(elements), tuple(members))


def _rows(place: Reached, elements: list[list[int]]) -> np.ndarray | None:
    """Channels of each element at a place; None if these are not equally many."""
    element_of = np.empty(sum(map(len, elements)), np.int64)
    for number, element in enumerate(elements):
        element_of[element] = number
    channels = np.flatnonzero(place.owners >= 0)
    owners = element_of[place.owners[channels]]
    counts = np.bincount(owners, minlength=len(elements))
    if counts.min() != counts.max():
        return None
    return channels[owners.argsort(kind='stable')].reshape(len(elements), -1)
