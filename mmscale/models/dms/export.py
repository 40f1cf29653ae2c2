"""Pruned networks as they are kept: an Arch, or the original config with a description."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from mmscale.arch import Arch, Block
from mmscale.models.dms.prune import Pruning, apply_pruning
from mmscale.registry import MODELS


def pruned_arch(arch: Arch, pruning: Pruning, prefix: str = '') -> Arch:
    """The Arch of a pruned ArchNet.

    Args:
        arch: That of the whole network.
        pruning: What stays of it.
        prefix: What comes before the names of the network's layers, as ``backbone.``.
    """

    def width(name: str, whole: int) -> int:
        return len(pruning.slices.get(f'{prefix}{name}.conv', {}).get('out', range(whole)))

    channels = width('stem', arch.stem.out_channels)
    stem = replace(arch.stem, out_channels=channels)
    stages = []
    for i, stage in enumerate(arch.stages):
        blocks = []
        for j, block in enumerate(stage):
            name = f'stages.{i}.{j}'
            if f'{prefix}{name}' not in pruning.removed:
                blocks.append(_pruned_block(block, name, channels, width))
                channels = blocks[-1].out_channels
        stages.append(tuple(blocks))
    head = arch.head
    if head.channels:
        head = replace(head, channels=width('conv_head', head.channels))
    return replace(arch, stem=stem, stages=tuple(stages), head=head)


def _pruned_block(
    block: Block, name: str, channels: int, width: Callable[[str, int], int]
) -> Block:
    spatial = width(f'{name}.spatial', block.grouped_widths[1])
    hidden, grouped = spatial, None
    if block.kind in ('mbconv', 'bottleneck'):
        hidden, grouped = width(f'{name}.expand', block.hidden_channels), spatial
    se = block.se
    if se is not None:
        se = replace(se, channels=width(f'{name}.se.conv1', se.channels))
    return replace(
        block,
        in_channels=channels,
        hidden_channels=hidden,
        out_channels=spatial
        if block.kind == 'conv'
        else width(f'{name}.project', block.out_channels),
        groups=spatial if block.depthwise else block.groups,
        se=se,
        grouped_channels=grouped,
    )


def renumbered(
    state: Mapping[str, torch.Tensor], arch: Arch, pruning: Pruning, prefix: str = ''
) -> dict[str, torch.Tensor]:
    """A pruned network's tensors, named as in the ArchNet of its Arch.

    Args:
        state: Those of the pruned network, removed blocks skipped but counted.
        arch: The Arch of the whole network.
        pruning: What stays of it.
        prefix: As in :func:`pruned_arch`.
    """
    names = {}
    for i, stage in enumerate(arch.stages):
        left = [
            f'{prefix}stages.{i}.{j}.'
            for j in range(len(stage))
            if f'{prefix}stages.{i}.{j}' not in pruning.removed
        ]
        names |= {name: f'{prefix}stages.{i}.{j}.' for j, name in enumerate(left)}
    result = {}
    for key, tensor in state.items():
        rest = key.removeprefix(prefix)
        old = f'{prefix}{".".join(rest.split(".")[:3])}.'
        result[key.replace(old, names[old], 1) if old in names else key] = tensor
    return result


@MODELS.register_module(name='PrunedModel')
def pruned_model(
    model: dict, pruned: str | Path | dict, data_preprocessor: dict | None = None
) -> nn.Module:
    """Builds a model, or a part of one, and prunes it.

    What comes back is the model's own class with fewer channels and blocks: its tensors have the
    names that they had. In a config: ``dict(type='mmscale.PrunedModel', model=dict(...),
    pruned='pruned.json')``.

    Args:
        model: Config of the whole model.
        pruned: The file that tools/prune.py wrote, or its content.
        data_preprocessor: As of the model, which it is handed to.

    Raises:
        ValueError: The file is no such file, or does not fit the model.
    """
    pruning = Pruning.from_json(pruned)
    model = dict(model)
    if data_preprocessor is not None:
        model.setdefault('data_preprocessor', data_preprocessor)
    return apply_pruning(MODELS.build(model), pruning)
