"""Traced groups put to the test: what is pruned has to do what it did under masks."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Sequence

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from mmscale.cost import count_module
from mmscale.errors import FOREIGN_ERRORS
from mmscale.models.dms.cost import MaskedCost
from mmscale.models.dms.groups import ChannelGroup, ChannelGroups, DepthGroup
from mmscale.models.dms.layers import copy_for_inference
from mmscale.models.dms.masking import Masks
from mmscale.models.dms.prune import apply_pruning, plan_pruning
from mmscale.models.dms.residual import random_like
from mmscale.models.dms.topk import DifferentiableTopK

DECLARE = (
    'declare its groups with mmscale.models.dms.declare_groups(network, grouper), as '
    'mmscale/models/dms/transformers.py does for transformers'
)


def tried_groups(
    model: nn.Module,
    groups: ChannelGroups,
    inputs: Sequence[torch.Tensor],
    not_followed: Collection[str] = (),
) -> ChannelGroups:
    """Those of a model's groups which can go without harm; a warning names the others.

    Args:
        model: The model; it is left as it is.
        groups: What it can lose, as far as is known.
        inputs: Positional arguments of one forward pass.
        not_followed: Layers whose channels could not be made a group.
    """
    sound = sound_groups(model, groups, inputs)
    # Of a concatenation each part may be a group, while the whole is none.
    made = {member.module for _, member in sound.members if member.role != 'in'}
    lost = [name for name in not_followed if name not in made]
    lost += [name for name in groups.by_name if name not in sound.by_name]
    if lost:
        warnings.warn(
            f'{type(model).__name__}: {len(lost)} of {len(sound.all) + len(lost)} groups stay '
            'whole, as something works on their channels that is not understood: '
            f'{", ".join(lost[:5])}{", ..." * (len(lost) > 5)}; to prune them, {DECLARE}',
            stacklevel=4,
        )
    return sound


def sound_groups(
    model: nn.Module, groups: ChannelGroups, inputs: Sequence[torch.Tensor]
) -> ChannelGroups:
    """Those of a model's groups which can go without harm.

    Tracing takes an operation that it does not know for one that leaves channels apart and in
    their order. Half of each group is therefore pruned at random: the outputs have to be those
    under masks, and the cost the predicted one. Where they are not, halves of the groups are
    tried until those are found that are wrong.

    Args:
        model: The model; it is left as it is.
        groups: What it can lose, as far as is known.
        inputs: Positional arguments of one forward pass.
    """
    hooks = model._forward_pre_hooks.values()
    if any(isinstance(getattr(hook, '__self__', None), Masks) for hook in hooks):
        return groups  # Tried before it got masks.
    twin = with_random_weights(model)
    inputs = [random_like(tensor, torch.Generator().manual_seed(1)) for tensor in inputs]
    try:
        # Rounding is far from an error in double precision, which not every model runs in.
        exact = copy.deepcopy(twin).double()
        exact_inputs = [x.double() if x.is_floating_point() else x for x in inputs]
        _outputs(exact, exact_inputs)
        twin, inputs = exact, exact_inputs
    except FOREIGN_ERRORS:
        pass

    def sound(some: Sequence[ChannelGroup | DepthGroup]) -> list[ChannelGroup | DepthGroup]:
        if not some or _can_go(twin, some, inputs):
            return list(some)
        middle = len(some) // 2
        return [*sound(some[:middle]), *sound(some[middle:])] if middle else []

    kept = sound(groups.all)
    return ChannelGroups(
        tuple(group for group in kept if isinstance(group, ChannelGroup)),
        tuple(group for group in kept if isinstance(group, DepthGroup)),
    )


def with_random_weights(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose norm layers, biases and scales are no longer zeros and ones."""
    twin = copy_for_inference(model).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    statistics = [
        (name, tensor)
        for name, tensor in twin.named_buffers()
        if name.endswith(('running_mean', 'running_var'))
    ]
    for name, tensor in [*twin.named_parameters(), *statistics]:
        if tensor.dim() > 1 and tensor.any():
            continue
        values = torch.rand(tensor.shape, generator=generator) + 0.5
        if tensor.dim() > 1 or name.endswith(('bias', 'running_mean')):
            values = 0.3 * (values - 1)
        tensor.copy_(values)
    return twin


@torch.no_grad()
def _outputs(model: nn.Module, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return [leaf for leaf in tree_leaves(model(*inputs)) if torch.is_tensor(leaf)]


def _can_go(
    model: nn.Module, some: Sequence[ChannelGroup | DepthGroup], inputs: Sequence[torch.Tensor]
) -> bool:
    """Whether half of some groups can be pruned."""
    groups = ChannelGroups(
        tuple(group for group in some if isinstance(group, ChannelGroup)),
        tuple(group for group in some if isinstance(group, DepthGroup)),
    )
    generator = torch.Generator().manual_seed(2)
    gates, keep, counts = nn.ModuleDict(), {}, []
    for group in groups.all:
        chosen = torch.randperm(group.size, generator=generator)[: max(1, group.size // 2)]
        mask = torch.zeros(group.size).index_fill(0, chosen, 1)
        gates[group.key] = gate = DifferentiableTopK(group.size)
        gate.hard_mask.copy_(mask)
        gate.hard.fill_(True)
        keep[group.name] = chosen.tolist()
        counts += mask.tolist() if isinstance(group, DepthGroup) else [len(chosen)]
    gates.to(next(model.parameters()).device)
    try:
        masked = copy.deepcopy(model)
        Masks(masked, groups, gates).hard = True
        expected = _outputs(masked, inputs)
        small = apply_pruning(copy.deepcopy(model), plan_pruning(model, groups, keep))
        found = _outputs(small, inputs)
        if len(found) != len(expected) or not all(map(_are_close, found, expected)):
            return False
        predicted = MaskedCost(model, groups, inputs).count(counts)
        return count_module(small, inputs=inputs, memory=False).cost == predicted
    except FOREIGN_ERRORS:
        return False


def _are_close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    tolerance = 1e-8 if found.dtype == torch.float64 else 1e-3
    return torch.allclose(
        found, expected, rtol=0, atol=tolerance * float(expected.abs().max()), equal_nan=True
    )
