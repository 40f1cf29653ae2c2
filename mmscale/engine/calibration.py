"""Statistics of BN layers, measured anew on a set of images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

Item = TypeVar('Item')


def even_batches(items: Sequence[Item], size: int) -> list[list[Item]]:
    """Batches of a size at most that differ by one item at most, in the order of the items.

    A last batch of one image would have no statistics in maps of 1 x 1.

    Example:
        >>> [len(batch) for batch in even_batches(range(65), 32)]
        [22, 22, 21]
    """
    count = -(-len(items) // size)
    ends = [-(-len(items) * i // count) for i in range(count + 1)]
    return [list(items[start:end]) for start, end in pairwise(ends)]


@torch.no_grad()
def recalibrate(net: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Measures the statistics of BN layers, leaving a network in training mode.

    As ``torch.optim.swa_utils.update_bn``, but the images of a smaller batch count no more than
    others.

    Args:
        net: The network.
        batches: Images (N, channels, height, width), normalised.
    """
    layers = [module for module in net.modules() if isinstance(module, _BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
    net.train()
    seen = 0
    for inputs in batches:
        seen += len(inputs)
        for layer in layers:
            layer.momentum = len(inputs) / seen
        net(inputs)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
