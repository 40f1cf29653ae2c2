"""Residual blocks of any model, found by what they compute."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from mmscale.errors import FOREIGN_ERRORS
from mmscale.models.dms.groups import DepthGroup
from mmscale.models.dms.layers import copy_for_inference

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def depth_groups(model: nn.Module, inputs: Sequence[torch.Tensor]) -> tuple[DepthGroup, ...]:
    """Blocks that are the identity once a few of their layers give zero, by network stage.

    Such a block adds what these layers end to its input, in one branch or in several (a token
    mixer and an MLP). They need not be the last: behind one that gives zero, pooling, a gate or a
    scale leave zero. An activation after the addition is no obstacle where it leaves the block's
    own inputs as they are (ReLU after ReLU). Of blocks in each other the innermost are meant.

    Args:
        model: Any model; it is left as it is.
        inputs: Positional arguments of one forward pass; numbers are replaced by random ones.
    """
    twin = copy_for_inference(model)
    generator = torch.Generator().manual_seed(0)
    calls, order = _run(twin, [random_like(tensor, generator) for tensor in inputs])
    names = {layer: name for name, layer in twin.named_modules()}
    found: dict[str, tuple[str, ...]] = {}
    for name, module in reversed(list(twin.named_modules())):
        if not name or name not in calls or isinstance(module, _CONTAINERS):
            continue
        if any(block.startswith(f'{name}.') for block in found):
            continue
        ends = _branch_ends(module, order[name], calls[name], generator)
        if ends:
            found[name] = tuple(names[layer] for layer in ends)
    return _by_stage({name: ends for name, ends in reversed(found.items())}, calls)


class _Call(NamedTuple):
    """What a module was called with, the first argument apart."""

    x: torch.Tensor
    args: tuple
    kwargs: dict


def _run(
    twin: nn.Module, inputs: Sequence[torch.Tensor]
) -> tuple[dict[str, _Call], dict[str, list[nn.Module]]]:
    """Calls of modules that give a tensor of the form of their first, by name.

    Beside them the layers with weights that ran in each module, in their order.
    """
    calls: dict[str, _Call] = {}
    several: set[str] = set()
    order: dict[str, list[nn.Module]] = defaultdict(list)
    running: list[str] = []

    def enter(name: str) -> None:
        running.append(name)

    def leave(name: str, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        running.pop()
        if name in calls:
            several.add(name)
        if args and _are_tensors(args[0], output) and args[0].shape == output.shape:
            calls[name] = _Call(args[0], args[1:], kwargs)
        if isinstance(module._parameters.get('weight'), nn.Parameter):
            for block in running:
                if module not in order[block]:
                    order[block].append(module)

    handles = []
    for name, module in twin.named_modules():
        handles += [
            module.register_forward_pre_hook(lambda *_, name=name: enter(name)),
            module.register_forward_hook(
                lambda *args, name=name: leave(name, *args), with_kwargs=True
            ),
        ]
    with torch.no_grad():
        twin(*inputs)
    for handle in handles:
        handle.remove()
    return {name: call for name, call in calls.items() if name not in several}, order


def _by_stage(
    found: dict[str, tuple[str, ...]], calls: dict[str, _Call]
) -> tuple[DepthGroup, ...]:
    """Blocks as groups: those of one parent that map tensors of one form."""

    def parent(name: str, steps: int) -> str:
        return name.rsplit('.', steps)[0] if name.count('.') >= steps else ''

    def stage(name: str, steps: int) -> tuple[str, torch.Size]:
        return parent(name, steps), calls[name].x.shape

    siblings = Counter(stage(name, 1) for name in found)
    stages: dict[tuple[str, torch.Size], list[str]] = defaultdict(list)
    for name in found:
        # A block alone in its parent has its likes in those beside that.
        stages[stage(name, 2 if siblings[stage(name, 1)] == 1 else 1)].append(name)
    parents = Counter(owner for owner, _ in stages)
    return tuple(
        DepthGroup(
            owner if owner and parents[owner] == 1 else blocks[0],
            tuple(blocks),
            tuple(found[block] for block in blocks),
        )
        for (owner, _), blocks in stages.items()
    )


def _are_tensors(*values: Any) -> bool:
    return all(isinstance(value, torch.Tensor) for value in values)


def random_like(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Normal numbers in the place of a tensor's; integers stay what they are."""
    if not tensor.is_floating_point():
        return tensor
    return torch.randn(tensor.shape, generator=generator).to(tensor)


@torch.no_grad()
def _branch_ends(
    block: nn.Module, layers: Sequence[nn.Module], call: _Call, generator: torch.Generator
) -> list[nn.Module]:
    """The layers, as late and as few as can be, whose zeros make a block the identity."""
    probe = random_like(call.x, generator)
    if call.x.min() >= 0:
        probe = probe.abs()
    # What starts as zeros, as the last norms of blocks often do, would hide that it matters.
    kept = {
        id(tensor): (tensor, tensor.clone() if tensor.any() else torch.ones_like(tensor))
        for layer in layers
        for tensor in _weights(layer)
    }

    def is_identity() -> bool:
        # Not what it was called with: blocks may change that in place.
        result = block(probe.clone(), *call.args, **call.kwargs)
        return isinstance(result, torch.Tensor) and torch.equal(result, probe)

    def restore(*some: nn.Module) -> None:
        for layer in some:
            for tensor in _weights(layer):
                tensor.copy_(kept[id(tensor)][1])

    try:
        if not layers:
            return []
        for tensor, _ in kept.values():
            tensor.zero_()
        if not is_identity():
            return []
        ends = []
        for layer in layers:
            restore(layer)
            if not is_identity():
                for tensor in _weights(layer):
                    tensor.zero_()
                ends.append(layer)
        return ends
    except FOREIGN_ERRORS:
        return []
    finally:
        restore(*layers)


def _weights(layer: nn.Module) -> list[torch.Tensor]:
    """What a mask of a block multiplies of a layer."""
    tensors = (layer._parameters.get(name) for name in ('weight', 'bias'))
    return [tensor for tensor in tensors if tensor is not None]
