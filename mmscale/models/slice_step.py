"""Lets any element-wise optimizer step the slices of a super-supernet that were used."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from mmscale.errors import FOREIGN_ERRORS, UsageError, one_line
from mmscale.models.backbones import SuperNet, WeightSlice, disjoint, index_of, relative
from mmscale.models.backbones.slices import intersection


@contextmanager
def step_slices(optimizer: Optimizer, super_net: SuperNet) -> Iterator[None]:
    """Inside, an optimizer holds the leaves that were used in place of the whole parameters.

    Gradient clipping, a gradient scaler and the reduction over processes find there what is to be
    stepped: every used element once, with its whole gradient. The state that the optimizer keeps
    for a leaf is a view of its state for the whole parameter; so checkpoints know whole
    parameters alone. Parameter groups of equal settings are stepped as one. Gradients of the
    super-supernet's parameters are None afterwards.

    Scalars in an optimizer's state belong to the whole parameter: Adam's step count is that of the
    steps that used any part of it, so its bias correction is slightly too weak for rarely used
    elements. Optimizers that look at whole tensors (LAMB, LARS) look at what was used. An
    exponential moving average of the weights averages all elements, and one that does not change
    stays what it is. State that did not exist before is 0 outside the slices, also where an
    optimizer begins with another number (RMSpropTF's 1). :func:`check_steps_slices` tells what
    cannot step slices.

    Args:
        optimizer: Any ``torch.optim`` optimizer that holds the super-supernet's parameters.
        super_net: Knows what was used, see :meth:`SuperNet.slices`.
    """
    # By id: a parameter's own hash is a function of Python, and there may be thousands.
    slices: dict[int, list[WeightSlice]] = {}
    for parts in super_net.used_slices.values():
        owner = parts[0].owner
        trained = [part for part in parts if part.leaf.grad is not None]
        if owner.grad is not None:
            trained = parts
        if trained:
            slices[id(owner)] = _union(super_net, trained)
    own = optimizer.param_groups
    unused: list[nn.Parameter] = []
    merged: dict[Hashable, tuple[dict[str, Any], list[dict[str, Any]]]] = {}
    for group in own:
        parameters = []
        for parameter in group['params']:
            parts = slices.get(id(parameter))
            if parts is not None:
                parameters += [part.leaf for part in parts]
            elif parameter.grad is not None:
                (unused if super_net.owns(parameter) else parameters).append(parameter)
        if parameters:
            key = _key_of(group)
            if key not in merged:
                merged[key] = {**group, 'params': []}, []
            merged[key][0]['params'] += parameters
            merged[key][1].append(group)
    for parts in slices.values():
        _lend_state(optimizer, parts)
    optimizer.param_groups = [group for group, _ in merged.values()]
    try:
        yield
    finally:
        optimizer.param_groups = own
        for group, groups in merged.values():
            # Some optimizers count in their groups.
            first = groups[0]
            changed = {
                key: value
                for key, value in group.items()
                if key != 'params' and value is not first.get(key)
            }
            for one in groups if changed else ():
                one.update(changed)
        for parts in slices.values():
            _return_state(optimizer, parts)
            parts[0].owner.grad = None
        for parameter in unused:
            parameter.grad = None


def _key_of(group: dict[str, Any]) -> Hashable:
    """Equal for parameter groups of equal settings."""
    settings = tuple((key, value) for key, value in group.items() if key != 'params')
    try:
        hash(settings)
    except TypeError:
        return id(group)
    return settings


def _union(super_net: SuperNet, parts: list[WeightSlice]) -> list[WeightSlice]:
    """Slices of one parameter that do not overlap, with the gradients of all that were used.

    To these belong, inside the slices, gradients of the whole parameter, as of a penalty on it.
    """
    owner = parts[0].owner
    of_whole = None if any(part.leaf is owner for part in parts) else owner.grad
    if len(parts) == 1 and of_whole is None:
        return parts
    for part in parts:
        if part.leaf.grad is None:
            part.leaf.grad = torch.zeros_like(part.leaf)
    found = []
    for region, outer in disjoint(parts):
        part = super_net.piece(outer, region)
        gradient = outer.leaf.grad
        if part is not outer:
            # Of the outer gradient itself, which is not stepped there.
            gradient = gradient[index_of(relative(region, outer.region))]
        for other in parts:
            shared = intersection(region, other.region) if other is not outer else None
            if shared is not None:
                gradient[index_of(relative(shared, region))] += other.leaf.grad[
                    index_of(relative(shared, other.region))
                ]
        if of_whole is not None:
            gradient += of_whole[index_of(region)]
        part.leaf.grad = gradient
        found.append(part)
    return found


def check_steps_slices(optimizer: Optimizer) -> None:
    """Checks on a small slice that an optimizer can step parts of larger tensors.

    Kernels that fuse the whole step (``fused=True``) take any memory for dense, and write beside a
    slice.

    Args:
        optimizer: Is not changed.

    Raises:
        UsageError: It cannot.
    """
    kinds = {_key_of(group): group for group in optimizer.param_groups if group['params']}
    for group in kinds.values():
        first = group['params'][0]
        # As large as dimensions have to be for optimizers that keep sums of rows and columns.
        whole = first.new_zeros(256, 260, 3, 3)
        part = whole[:, 1:257]
        # Some, as Adagrad, keep something before their first step.
        state = {
            key: torch.full_like(part, value.flatten()[0])
            if _is_elementwise(value, first)
            else copy.deepcopy(value)
            for key, value in optimizer.state.get(first, {}).items()
        }
        name = f'optimizer {type(optimizer).__name__}'
        try:
            kept = state_after_step(optimizer, {**group, 'lr': 1.0}, part, 1.0, state)
        except FOREIGN_ERRORS as error:
            raise UsageError(
                f'{name} cannot step the slices of a super-supernet by its param_groups and state '
                f'alone: {one_line(error):.200}'
            ) from error
        part.zero_()
        if whole.any():
            hint = ', which fused=True does: leave it out' if group.get('fused') else ''
            raise UsageError(f'{name} writes beside the slices of a super-supernet{hint}')
        _check_elementwise(name, kept, part)


def _check_elementwise(name: str, state: Mapping[str, Any], part: torch.Tensor) -> None:
    for key, value in state.items():
        if torch.is_tensor(value) and value.numel() > 1 and value.shape != part.shape:
            raise UsageError(
                f'{name}: its {key} for weights of shape {tuple(part.shape)} has shape '
                f'{tuple(value.shape)}; a super-supernet needs an optimizer that keeps one value '
                'an element'
            )


def _is_elementwise(value: object, parameter: nn.Parameter) -> bool:
    return torch.is_tensor(value) and value.shape == parameter.shape


def _lend_state(optimizer: Optimizer, parts: list[WeightSlice]) -> None:
    """Gives every slice of a parameter its part of the optimizer's state for the whole one."""
    owner = parts[0].owner
    state = optimizer.state.get(owner)
    if not state:
        return
    for part in parts:
        if part.leaf is not owner:
            # A count is increased in place, once for every slice.
            optimizer.state[part.leaf] = {
                key: _part_of(part, key, value, alone=len(parts) == 1)
                for key, value in state.items()
            }


def _part_of(part: WeightSlice, key: str, value: object, alone: bool) -> object:
    # First, as comparing shapes takes longer, for hundreds of slices a step.
    known = part.views.get(key)
    if known is not None and known[0] is value:
        return known[1]
    if _is_elementwise(value, part.owner):
        return part.view(key, value)
    return value if alone else copy.deepcopy(value)


def _return_state(optimizer: Optimizer, parts: list[WeightSlice]) -> None:
    """Writes what the state of a parameter's slices has become into that of the whole one."""
    owner = parts[0].owner
    for part in parts:
        part.leaf.grad = None
        if part.leaf is owner:
            continue
        state = optimizer.state.pop(part.leaf, None)
        if not state:
            continue
        whole = optimizer.state[owner]
        for key, value in state.items():
            known = part.views.get(key)
            if known is not None and value is known[1] and whole.get(key) is known[0]:
                continue
            if _is_elementwise(value, part.leaf):
                if not torch.is_tensor(whole.get(key)):
                    whole[key] = torch.zeros_like(owner, dtype=value.dtype)
                part.view(key, whole[key]).copy_(value)
            else:
                whole[key] = value


def state_after_step(
    optimizer: Optimizer,
    group: Mapping[str, Any],
    parameter: torch.Tensor,
    gradient: float = 0.0,
    state: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What an optimizer keeps of a parameter after a step, which the parameter takes.

    Args:
        optimizer: Is not changed.
        group: Settings of the step.
        parameter: A tensor that requires no gradient.
        gradient: Of its every element.
        state: What it keeps of the parameter before.
    """
    alone = copy.copy(optimizer)  # without its hooks
    stand_in = nn.Parameter(parameter)
    stand_in.grad = torch.full(
        parameter.shape, gradient, dtype=parameter.dtype, device=parameter.device
    )
    alone.param_groups = [{**group, 'params': [stand_in]}]
    alone.state = defaultdict(dict, {stand_in: dict(state)} if state else {})
    # A scheduler has put a counter of steps before the method.
    type(optimizer).step(alone)
    return alone.state[stand_in]
