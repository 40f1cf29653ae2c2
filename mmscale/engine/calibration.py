"""Statistics of BN layers, measured anew on a set of images."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

Item = TypeVar('Item')


def even_batches(items: Sequence[Item], size: int) -> list[list[Item]]:
    """Batches of a size at most that differ by one item at most, in the order of the items.

    A batch of one image would have no statistics in maps of 1 x 1: there is none, unless the
    size is 1 or there is one item. So of an odd number in batches of two, one has three.

    Example:
        >>> [len(batch) for batch in even_batches(range(65), 32)]
        [22, 22, 21]
    """
    count = -(-len(items) // size)
    if size > 1:
        count = min(count, max(len(items) // 2, 1))
    ends = [-(-len(items) * i // count) for i in range(count + 1)]
    return [list(items[start:end]) for start, end in pairwise(ends)]


class Recalibration:
    """Measures the statistics of a network's BN layers, batch by batch; it is in training mode.

    As ``torch.optim.swa_utils.update_bn``, but the images of a smaller batch count no more than
    others.

    Args:
        net: The network.
    """

    def __init__(self, net: nn.Module) -> None:
        self._net = net
        net.train()  # MMEngine's may return nothing
        self._layers = [module for module in net.modules() if isinstance(module, _BatchNorm)]
        self._momenta = [layer.momentum for layer in self._layers]
        self._seen = 0
        for layer in self._layers:
            layer.reset_running_stats()

    @torch.no_grad()
    def see(self, inputs: torch.Tensor) -> None:
        """Counts a batch of images (N, channels, height, width), normalised."""
        self._seen += len(inputs)
        for layer in self._layers:
            layer.momentum = len(inputs) / self._seen
        self._net(inputs)

    def finish(self) -> None:
        """Gives the layers back the momenta that they had; the last thing to do."""
        for layer, momentum in zip(self._layers, self._momenta, strict=True):
            layer.momentum = momentum
