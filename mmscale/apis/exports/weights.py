"""Weights of an export: from a checkpoint, whose every key has to fit, or random ones."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmscale.arch import Arch
from mmscale.errors import UsageError
from mmscale.launch.command_line import read_checkpoint

if TYPE_CHECKING:
    from torch import Tensor, nn

# What of a checkpoint's `meta` says where the weights come from.
_META = ('epoch', 'iter', 'seed')
RANDOM = 'The weights are random: for measuring the network before it is trained.'


def sha256(path: str | Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with Path(path).open('rb') as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


@contextlib.contextmanager
def same_random_weights() -> Iterator[None]:
    """What is built meanwhile gets random weights, always the same."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a checkpoint; ``provenance`` and, where there is one, its Arch."""
    from mmscale.models.checkpoints import weights_of

    checkpoint = read_checkpoint(str(path))
    weights = weights_of(path, checkpoint)
    about: dict[str, Any] = {}
    if isinstance(checkpoint.get('arch'), str):
        about['arch'] = checkpoint['arch']
    meta = checkpoint.get('meta')
    meta = meta if isinstance(meta, Mapping) else {}
    known = [f'{key} {meta[key]}' for key in _META if isinstance(meta.get(key), (int, float, str))]
    when = f' ({", ".join(known)})' if known else ''
    about['provenance'] = {
        'checkpoint': f'{Path(path).name}{when}',
        'checkpoint, SHA-256': sha256(path),
    }
    return weights, about


def fitting_head(arch: Arch, weights: Mapping[str, Tensor]) -> tuple[Arch, list[str]]:
    """The Arch with the classes that the weights have, and what there is to say about it."""
    last = 'head.layers.1.fc.weight' if arch.head.hidden_channels else 'head.fc.weight'
    if not any(key.startswith('head.') for key in weights):
        if not arch.head.num_classes:
            return arch, []
        head = replace(arch.head, num_classes=0, hidden_channels=0)
        note = 'The weights have no head: the backbone is exported, its outputs are feature maps.'
        return replace(arch, head=head), [note]
    if last not in weights or len(weights[last]) == arch.head.num_classes:
        return arch, []
    classes = len(weights[last])
    notes = []
    if arch.head.num_classes:
        notes = [
            f'The head has the {classes} classes of the weights, not {arch.head.num_classes}.'
        ]
    return replace(arch, head=replace(arch.head, num_classes=classes)), notes


def checked_weights(
    model: nn.Module, weights: Mapping[str, Tensor], path: str | Path
) -> Mapping[str, Tensor]:
    """Weights by the names of a model; each has to fit.

    Args:
        model: The model, whose own weights need no values.
        weights: Those of a checkpoint.
        path: The checkpoint, for the error.

    Raises:
        ValueError: Keys are missing or left over, or a shape differs; the first is named.
    """
    from mmscale.models.checkpoints import misfit

    if hasattr(model, 'backbone') and not any(key.startswith('backbone.') for key in weights):
        weights = {f'backbone.{key}': value for key, value in weights.items()}
    # What a data preprocessor keeps is set by its config.
    weights = {k: v for k, v in weights.items() if not k.startswith('data_preprocessor.')}
    wanted = {k: v for k, v in model.state_dict().items() if k in weights or not _is_counter(k)}
    difference = misfit(wanted, weights)
    if difference:
        raise UsageError(f'{path} does not fit the network: {difference}')
    return weights


def _is_counter(key: str) -> bool:
    """Whether a BN counts its batches there; old weights have none, and only training asks."""
    return key.endswith('.num_batches_tracked')
