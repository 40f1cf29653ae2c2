"""Pruning of models: by a fraction, by groups, or as a search by gradient has found."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from mmscale.apis.cost import build_module
from mmscale.arch import Arch
from mmscale.cost import ModuleCost, count_module
from mmscale.models import ArchNet, DMSModel
from mmscale.models.dms import (
    ChannelGroup,
    DepthGroup,
    Pruning,
    apply_pruning,
    channel_groups,
    plan_pruning,
    pruned_arch,
    renumbered,
    static_model,
)
from mmscale.models.dms.masking import weight_importance

if TYPE_CHECKING:
    from mmengine.config import Config

Keep = float | Sequence[int]

__all__ = ['channel_groups', 'export_search', 'prune']


def prune(
    model: nn.Module, inputs: Sequence[torch.Tensor], keep: float | Mapping[str, Keep]
) -> tuple[nn.Module, ModuleCost]:
    """A smaller copy of a model, and its cost.

    Args:
        model: Any model; it is left as it is.
        inputs: Positional arguments of one forward pass.
        keep: How much stays of every width group (blocks all stay), or by the names of width and
            depth groups: a fraction, rounded to whole elements of which one stays at least, or
            the indices that stay. A fraction keeps the elements with the largest L1 norm of the
            weights that make them, and the first blocks.

    Raises:
        ValueError: A fraction, a name or an index is not allowed, or the model cannot be traced.
    """
    small = static_model(copy.deepcopy(model))
    groups = channel_groups(small, inputs)
    if isinstance(keep, Real):
        keep = {group.name: keep for group in groups.widths}
    unknown = sorted(keep.keys() - groups.by_name.keys())
    if unknown:
        raise ValueError(f'keep: there is no group {unknown[0]}; see print(channel_groups(...))')
    chosen = {name: _chosen(small, groups.by_name[name], value) for name, value in keep.items()}
    apply_pruning(small, plan_pruning(small, groups, chosen))
    return small, count_module(small, inputs=inputs, memory=False)


def _chosen(model: nn.Module, group: ChannelGroup | DepthGroup, keep: Keep) -> Sequence[int]:
    """Indices that stay of a group."""
    if not isinstance(keep, Real):
        return keep
    if isinstance(keep, bool) or not 0 < keep <= 1:
        raise ValueError(f'keep: {group.name} has {keep!r}, a fraction must lie in 0..1, above 0')
    count = max(1, round(keep * group.size))
    if isinstance(group, DepthGroup):
        return range(count)
    return weight_importance(model, group).topk(count).indices.tolist()


def export_search(config: Config, state: Mapping[str, torch.Tensor], out: str | Path) -> dict:
    """Writes the network that a search by gradient has found.

    Args:
        config: Config of the search; its model is a DMSModel.
        state: State dict of the search's checkpoint.
        out: Folder to write to: ``weights.pth``, and ``arch.json`` for an ArchNet or
            ``pruned.json`` for any other model.

    Returns:
        Flops, params and acts ``before`` and ``after``; ``kept`` and all elements by group; and
        the names of the ``files``.

    Raises:
        ValueError: The config is of no search, or the state is not its own.
    """
    settings = dict(config.get('model') or {})
    if 'data_preprocessor' in config:
        settings.setdefault('data_preprocessor', config.data_preprocessor)
    search = build_module(settings, config.get('default_scope') or 'mmpretrain')
    if not isinstance(search, DMSModel):
        raise ValueError(f'model.type={settings["type"]} is not a mmscale.DMSModel')
    try:
        search.load_state_dict(state)
    except RuntimeError as error:
        reason = ' '.join(str(error).split())
        raise ValueError(f'the checkpoint is not of this config: {reason:.300}') from None
    search.masks.remove()
    model, groups = search.model, search.groups
    keep = {group.name: search.gates[group.key].keep_indices.tolist() for group in groups.all}
    pruning = plan_pruning(model, groups, keep)
    inputs = search.example_inputs
    before = count_module(model, inputs=inputs, memory=False)
    after = count_module(apply_pruning(model, pruning), inputs=inputs, memory=False)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = model.state_dict()
    described: Pruning | Arch = pruning
    path = folder / 'pruned.json'
    for name, module in model.named_modules():
        if isinstance(module, ArchNet):
            prefix = f'{name}.' if name else ''
            described = pruned_arch(module.arch, pruning, prefix)
            tensors = renumbered(tensors, module.arch, pruning, prefix)
            path = folder / 'arch.json'
    described.save(path)
    weights = folder / 'weights.pth'
    torch.save({'state_dict': tensors}, weights)
    return {
        'before': _numbers(before),
        'after': _numbers(after),
        'kept': {group.name: [len(keep[group.name]), group.size] for group in groups.all},
        'files': [str(path), str(weights)],
    }


def _numbers(cost: ModuleCost) -> dict[str, int]:
    return {key: getattr(cost, key) for key in ('flops', 'params', 'acts')}
