"""Channel groups of models that do not declare them, from one forward pass."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from mmscale.errors import UsageError, one_line
from mmscale.models.dms.flow import Flow, Place
from mmscale.models.dms.groups import ChannelGroup, ChannelGroups, Member
from mmscale.models.dms.labels import FIXED
from mmscale.models.dms.layers import copy_for_inference
from mmscale.models.dms.residual import depth_groups
from mmscale.models.dms.trial import DECLARE, tried_groups

# Names of attributes that hold the width of all heads of attention together.
_HEADS_TOGETHER = ('all_head_size', 'attn_dim', 'inner_dim', 'embed_dim', 'embed_dims')


def traced_groups(model: nn.Module, inputs: Sequence[torch.Tensor]) -> ChannelGroups:
    """What a model can lose, found by following one forward pass, which always ends.

    Widths that reach an output of the model stay. So do those whose pruning turns out to change
    more than their masks do: a warning names them.

    Args:
        model: Any model of convolutions, linear and norm layers; it is left as it is.
        inputs: Positional arguments of one forward pass.

    Raises:
        ValueError: The model does not run on the inputs, or has layers that take no part in it.
    """
    try:
        twin = copy_for_inference(model)
        depths = depth_groups(twin, inputs)
        flow = Flow(twin)
        flow.run(inputs)
    except Exception as error:  # whatever the model's own code raises
        raise UsageError(
            f'{type(model).__name__} cannot be traced ({one_line(error):.200}); {DECLARE}'
        ) from error
    layers = {
        name: module
        for name, module in twin.named_modules()
        if isinstance(module, (_ConvNd, nn.Linear))
    }
    uncalled = [name for name in layers if name not in flow.called]
    unused = [
        name
        for name in uncalled
        if not any(f'{name}.{last}' in flow.used for last in ('weight', 'bias'))
    ]
    if unused:
        raise UsageError(
            f'{type(model).__name__} cannot be traced: {", ".join(unused[:5])} took no part in '
            f'the forward pass, so it is not known what they share; {DECLARE}'
        )
    found = _Found(flow, twin)
    groups = ChannelGroups(found.groups, depths)
    if uncalled and not groups.all and not found.lost:
        warnings.warn(
            f'{type(model).__name__}: nothing can go, as layers are not called but their weights '
            f'given to functions, which is not followed: {", ".join(uncalled[:5])}'
            f'{", ..." * (len(uncalled) > 5)}; to prune them, call the layers or {DECLARE}',
            stacklevel=3,
        )
    return tried_groups(model, groups, inputs, found.lost)


class _Found:
    """Groups of the channels that a forward pass has shown, and what has to stay.

    Args:
        flow: The pass.
        model: What it was of.

    Attributes:
        groups: In the order of the layers that make them.
        lost: Layers whose channels have to stay, and why; none whose channels leave the model.
    """

    def __init__(self, flow: Flow, model: nn.Module) -> None:
        self._flow = flow
        self._order = {name: number for number, (name, _) in enumerate(model.named_modules())}
        self._layers = dict(model.named_modules())
        self._classes = flow.labels.classes()
        self._stays = np.zeros(flow.labels.size, dtype=bool)
        self._stays[FIXED] = True
        for labels in (*flow.labels.leaving, *(labels for labels, _ in flow.labels.reasons)):
            self._stays[self._classes[labels]] = True
        # Joined or not, all labels of a class share its fate.
        self._stays = self._stays[self._classes]
        self.groups = tuple(sorted(self._grouped(), key=lambda group: self._order[group.name]))
        self.lost = self._not_grouped()

    def _grouped(self) -> list[ChannelGroup]:
        """Elements that lie in the same places are a group."""
        lies: dict[int, Counter[Place]] = defaultdict(Counter)
        for place, labels in self._flow.places.items():
            for element in self._classes[labels.numpy()].tolist():
                if not self._stays[element]:
                    lies[element][place] += 1
        alike: dict[frozenset, list[int]] = defaultdict(list)
        for element, places in lies.items():
            alike[frozenset(places.items())].append(element)
        number = {place: number for number, place in enumerate(self._flow.places)}
        groups = []
        taken: set[str] = set()
        for places, elements in alike.items():
            in_order = sorted((place for place, _ in places), key=number.__getitem__)
            group = self._group(in_order, elements, taken)
            if group is not None:
                groups.append(group)
                taken.add(group.name)
        return groups

    def _group(
        self, places: list[Place], elements: list[int], taken: set[str]
    ) -> ChannelGroup | None:
        """Elements as a group, named after the first layer that makes them and no other's."""
        if not any(place.role == 'in' for place in places):
            return None
        number = np.full(self._flow.labels.size, -1)
        number[elements] = np.arange(len(elements))
        members, counts = [], []
        for place in places:
            owners = number[self._classes[self._flow.places[place].numpy()]]
            channels = np.flatnonzero(owners >= 0)
            order = owners[channels].argsort(kind='stable')
            indices = channels[order].reshape(len(elements), -1)
            members.append(Member(place.name, place.role, indices, place.dim))
            layer = self._layers.get(place.name)
            if isinstance(layer, nn.GroupNorm) and layer.num_groups > 1:
                if indices.size < layer.num_channels:
                    return None  # How many groups stay is not of these elements alone.
                counts.append((place.name, 'num_groups', layer.num_groups // len(elements)))
        members.sort(key=lambda member: self._order.get(member.module, len(self._order)))
        makers = [member for member in members if member.role == 'out']
        name = next((maker.module for maker in makers if maker.module not in taken), None)
        if name is None:
            return None
        if len(elements) == 1 < self._flow.places[Place(name, 'out')].numel():
            return None
        heads = self._head_counts(number, members)
        kind = 'heads' if heads else 'width'
        return ChannelGroup(name, len(elements), tuple(members), kind, (*counts, *heads))

    def _head_counts(
        self, number: np.ndarray, members: Sequence[Member]
    ) -> list[tuple[str, str, int]]:
        """Attributes that count the elements of a group, if these are heads of attention."""
        found: dict[tuple[str, str], int] = {}
        size = number.max() + 1
        for labels, module, attribute in self._flow.heads:
            elements = np.sort(number[self._classes[labels.numpy()]])
            if not np.array_equal(elements, np.arange(size)):
                continue
            found[module, attribute] = 1
            widths = {member.indices.size for member in members if member.role == 'in'}
            for name, value in vars(self._layers[module]).items():
                if name in _HEADS_TOGETHER and value in widths:
                    found[module, name] = value // size
        return [(module, attribute, multiple) for (module, attribute), multiple in found.items()]

    def _not_grouped(self) -> dict[str, str]:
        grouped = {
            member.module
            for group in self.groups
            for member in group.members
            if member.role == 'out'
        }
        leaving = np.zeros(self._flow.labels.size, dtype=bool)
        for labels in self._flow.labels.leaving:
            leaving[self._classes[labels]] = True
        reasons: dict[int, str] = {}
        for labels, reason in self._flow.labels.reasons:
            for element in np.unique(self._classes[labels]).tolist():
                reasons.setdefault(element, reason)
        lost = {}
        for place, labels in self._flow.places.items():
            elements = self._classes[labels.numpy()]
            if place.role != 'out' or place.name in grouped or leaving[elements].any():
                continue
            why = next((reasons[one] for one in elements.tolist() if one in reasons), '')
            if labels.numel() > 1:
                lost[place.name] = why or 'its channels cannot go one by one'
        return lost
