"""Residual blocks of any model, found by what they compute."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from mmscale.models.dms.groups import DepthGroup
from mmscale.models.dms.layers import copy_for_inference

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def depth_groups(model: nn.Module, inputs: Sequence[torch.Tensor]) -> tuple[DepthGroup, ...]:
    """Blocks that are the identity once their last layer gives zero, by network stage.

    Such a block adds the output of that layer to its input. An activation after the addition
    is no obstacle where it leaves the block's own inputs as they are (ReLU after ReLU).

    Args:
        model: Any model; it is left as it is.
        inputs: Positional arguments of one forward pass; numbers are replaced by random ones.
    """
    twin = copy_for_inference(model)
    generator = torch.Generator().manual_seed(0)
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    order: dict[str, list[str]] = defaultdict(list)
    running: list[str] = []

    def enter(name: str) -> None:
        running.append(name)

    def leave(name: str, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        running.pop()
        if len(args) == 1 and not kwargs and _are_tensors(*args, output):
            seen[name] = args[0], output
        if isinstance(getattr(module, 'weight', None), nn.Parameter):
            for block in running:
                order[block].append(name)

    handles = []
    for name, module in twin.named_modules():
        handles += [
            module.register_forward_pre_hook(lambda *_, name=name: enter(name)),
            module.register_forward_hook(
                lambda *args, name=name: leave(name, *args), with_kwargs=True
            ),
        ]
    with torch.no_grad():
        twin(*(random_like(tensor, generator) for tensor in inputs))
    for handle in handles:
        handle.remove()
    stages: dict[tuple[str, torch.Size], list[tuple[str, str]]] = defaultdict(list)
    found: list[str] = []
    for name, module in twin.named_modules():
        if name not in seen or isinstance(module, _CONTAINERS) or not order[name]:
            continue
        x, output = seen[name]
        inner = any(name.startswith(f'{block}.') for block in found)
        if inner or not name or x.shape != output.shape:
            continue
        end = order[name][-1]
        if _is_residual(module, twin.get_submodule(end), x, generator):
            found.append(name)
            stages[name.rpartition('.')[0], x.shape].append((name, end))
    parents = [parent for parent, _ in stages]
    return tuple(
        DepthGroup(
            parent if parent and parents.count(parent) == 1 else blocks[0][0],
            tuple(name for name, _ in blocks),
            tuple((end,) for _, end in blocks),
        )
        for (parent, _), blocks in stages.items()
    )


def _are_tensors(*values: Any) -> bool:
    return all(isinstance(value, torch.Tensor) for value in values)


def random_like(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Normal numbers in the place of a tensor's; integers stay what they are."""
    if not tensor.is_floating_point():
        return tensor
    return torch.randn(tensor.shape, generator=generator).to(tensor)


@torch.no_grad()
def _is_residual(
    block: nn.Module, end: nn.Module, x: torch.Tensor, generator: torch.Generator
) -> bool:
    """Whether a block is the identity where one of its layers gives zero."""
    probe = random_like(x, generator)
    if x.min() >= 0:
        probe = probe.abs()
    weights = [tensor for tensor in (end.weight, getattr(end, 'bias', None)) if tensor is not None]
    kept = [tensor.clone() for tensor in weights]
    for tensor in weights:
        tensor.zero_()
    try:
        return torch.equal(block(probe), probe)
    finally:
        for tensor, values in zip(weights, kept, strict=True):
            tensor.copy_(values)
