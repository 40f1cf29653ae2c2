"""Traced groups put to the test: what is pruned has to do what it did under masks."""

from __future__ import annotations

import copy
import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmscale.cost import count_module
from mmscale.errors import FOREIGN_ERRORS
from mmscale.models.dms.cost import MaskedCost
from mmscale.models.dms.groups import ChannelGroup, ChannelGroups, DepthGroup
from mmscale.models.dms.layers import copy_for_inference, output_tensors
from mmscale.models.dms.masking import Masks
from mmscale.models.dms.prune import apply_pruning, plan_pruning
from mmscale.models.dms.residual import random_like
from mmscale.models.dms.topk import DifferentiableTopK

DECLARE = (
    'declare its groups with mmscale.models.dms.declare_groups(network, grouper), as '
    'docs/declare_groups.md does'
)


def tried_groups(
    model: nn.Module,
    groups: ChannelGroups,
    inputs: Sequence[torch.Tensor],
    not_followed: Mapping[str, str] | None = None,
) -> ChannelGroups:
    """Those of a model's groups which can go without harm; a warning names the others.

    Args:
        model: The model; it is left as it is.
        groups: What it can lose, as far as is known.
        inputs: Positional arguments of one forward pass.
        not_followed: Layers whose channels could not be made a group, and why.
    """
    sound = sound_groups(model, groups, inputs)
    # Of a concatenation each part may be a group, while the whole is none.
    made = {member.module for _, member in sound.members if member.role != 'in'}
    lost = {name: why for name, why in (not_followed or {}).items() if name not in made}
    lost |= {
        name: 'masks and pruning differ' for name in groups.by_name if name not in sound.by_name
    }
    if lost:
        warnings.warn(
            f'{type(model).__name__}: {len(lost)} of {len(sound.all) + len(lost)} groups stay '
            'whole, as something works on their channels that is not understood: '
            f'{_by_reason(lost)}; to prune them, {DECLARE}',
            stacklevel=4,
        )
    return sound


def _by_reason(lost: Mapping[str, str]) -> str:
    """Names under their reasons, a few of each."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, why in lost.items():
        # Reasons that name a layer are one for all layers of its kind.
        names[re.sub('[0-9]+', '*', why)].append(name)
    parts = [
        f'{", ".join(some[:3])}{f", ... ({len(some)})" * (len(some) > 3)}: {why}'
        for why, some in names.items()
    ]
    return '; '.join(parts[:5]) + '; ...' * (len(parts) > 5)


def sound_groups(
    model: nn.Module, groups: ChannelGroups, inputs: Sequence[torch.Tensor]
) -> ChannelGroups:
    """Those of a model's groups which can go without harm.

    Tracing may take something for channels that go one by one, and a declaration may be of
    another form of a network. Half of each group is therefore pruned at random: the outputs have
    to be those under masks, and the cost the predicted one. Widths are tried with all blocks in
    place, then blocks alone, then both together; where that fails, parts of them are tried until
    those are found that are wrong.

    Args:
        model: The model; it is left as it is.
        groups: What it can lose, as far as is known.
        inputs: Positional arguments of one forward pass.
    """
    trial = _Trial(model, inputs)
    widths = trial.sound([], groups.widths)
    depths = trial.sound([], groups.depths)
    kept = trial.sound(widths, depths) if widths and depths else [*widths, *depths]
    return _as_groups(group for group in groups.all if group in kept)


def _as_groups(some: Iterable[ChannelGroup | DepthGroup]) -> ChannelGroups:
    some = list(some)
    return ChannelGroups(
        tuple(group for group in some if isinstance(group, ChannelGroup)),
        tuple(group for group in some if isinstance(group, DepthGroup)),
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
        return output_tensors(model(*inputs))


class _Precision(TorchDispatchMode):
    """Notes whether operations give numbers of less than double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.is_double = True

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if torch.is_tensor(leaf) and leaf.is_floating_point():
                self.is_double &= leaf.dtype == torch.float64
        return result


class _Trial:
    """Trials of what a model can lose.

    Args:
        model: The model; it is left as it is.
        inputs: Positional arguments of one forward pass.
    """

    def __init__(self, model: nn.Module, inputs: Sequence[torch.Tensor]) -> None:
        self._model = with_random_weights(model)
        self._inputs = [random_like(tensor, torch.Generator().manual_seed(1)) for tensor in inputs]
        self._tolerance = 1e-3
        try:
            # Rounding is far from an error in double precision, which not every model runs in.
            exact = copy.deepcopy(self._model).double()
            inputs = [x.double() if x.is_floating_point() else x for x in self._inputs]
            with _Precision() as precision:
                _outputs(exact, inputs)
        except FOREIGN_ERRORS:
            return
        self._model, self._inputs = exact, inputs
        # Something that computes in single precision inside rounds to 6e-8.
        self._tolerance = 1e-8 if precision.is_double else 1e-5

    def sound(
        self,
        kept: Sequence[ChannelGroup | DepthGroup],
        some: Sequence[ChannelGroup | DepthGroup],
    ) -> list[ChannelGroup | DepthGroup]:
        """What is kept, and those of some more that can go together with it."""
        result = list(kept)
        if not some or self._can_go([*result, *some]):
            return [*result, *some]
        # What lies in layers of the same name but for a number is mostly of one fate.
        families: dict[str, list[ChannelGroup | DepthGroup]] = defaultdict(list)
        for group in some:
            families[re.sub('[0-9]+', '', group.name)].append(group)
        for family in families.values():
            result = self._add(result, family)
        return result

    def _add(
        self,
        kept: list[ChannelGroup | DepthGroup],
        family: Sequence[ChannelGroup | DepthGroup],
    ) -> list[ChannelGroup | DepthGroup]:
        """What is kept and those of a family that can go with it, found by halves."""
        if self._can_go([*kept, *family]):
            return [*kept, *family]
        if len(family) == 1:
            return kept
        ends = (family[0], family[-1]) if len(family) > 2 else ()
        if ends and not any(self._can_go([*kept, one]) for one in ends):
            return kept
        middle = len(family) // 2
        return self._add(self._add(kept, family[:middle]), family[middle:])

    def _can_go(self, some: Sequence[ChannelGroup | DepthGroup]) -> bool:
        """Whether half of some groups can be pruned; of blocks alone, all of them."""
        groups = _as_groups(some)
        generator = torch.Generator().manual_seed(2)
        gates, keep, counts = nn.ModuleDict(), {}, []
        for group in groups.all:
            chosen = torch.randperm(group.size, generator=generator)[: max(1, group.size // 2)]
            if isinstance(group, DepthGroup):
                chosen = chosen[: group.size // 2 if groups.widths else 0]
            mask = torch.zeros(group.size).index_fill(0, chosen, 1)
            gates[group.key] = gate = DifferentiableTopK(group.size, minimum=0)
            gate.hard_mask.copy_(mask)
            gate.hard.fill_(True)
            keep[group.name] = chosen.tolist()
            counts += mask.tolist() if isinstance(group, DepthGroup) else [len(chosen)]
        gates.to(next(self._model.parameters()).device)
        try:
            small = apply_pruning(
                copy.deepcopy(self._model), plan_pruning(self._model, groups, keep)
            )
            found = _outputs(small, self._inputs)
            masks = Masks(self._model, groups, gates)
            try:
                masks.hard = True
                expected = _outputs(self._model, self._inputs)
            finally:
                masks.remove()
            if len(found) != len(expected) or not all(map(self._are_close, found, expected)):
                return False
            predicted = MaskedCost(self._model, groups, self._inputs).count(counts)
            return count_module(small, inputs=self._inputs, memory=False).cost == predicted
        except FOREIGN_ERRORS:
            return False

    def _are_close(self, found: torch.Tensor, expected: torch.Tensor) -> bool:
        if found.shape != expected.shape or found.dtype != expected.dtype:
            return False
        if not found.is_floating_point():
            return torch.equal(found, expected)
        limit = self._tolerance * float(expected.abs().max())
        return torch.allclose(found, expected, rtol=0, atol=limit, equal_nan=True)
