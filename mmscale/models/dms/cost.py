"""Cost of a network under the masks of differentiable model scaling: a polynomial of counts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from mmscale.cost import Cost
from mmscale.cost.module import count_layers

if TYPE_CHECKING:
    from mmscale.models.dms.groups import ChannelGroups

# A polynomial of the gates' counts: coefficient by the (sorted) numbers of the gates multiplied.
Polynomial = Counter[tuple[int, ...]]


def _product(*factors: Polynomial) -> Polynomial:
    result = Polynomial({(): 1.0})
    for factor in factors:
        expanded = Polynomial()
        for left, a in result.items():
            for right, b in factor.items():
                expanded[tuple(sorted(left + right))] += a * b
        result = expanded
    return result


def _scaled(polynomial: Polynomial, factor: float) -> Polynomial:
    return Polynomial({gates: value * factor for gates, value in polynomial.items()})


def _widths(module: nn.Module) -> tuple[int, int, bool] | None:
    """Inputs and outputs of a layer, and whether each output has an input of its own."""
    if isinstance(module, nn.modules.conv._ConvNd):
        depthwise = module.groups > 1 and module.groups == module.in_channels
        return module.in_channels, module.out_channels, depthwise
    weight = getattr(module, 'weight', None)
    if not isinstance(weight, nn.Parameter):
        return None
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features, False
    if isinstance(module, nn.Embedding):
        return 1, module.embedding_dim, True
    if weight.dim() == 1:
        return weight.numel(), weight.numel(), True
    if weight.dim() == 2:  # the transposed linear layer of GPT-2
        return weight.shape[0], weight.shape[1], False
    return None
