"""What masking and pruning need to know of each type of layer."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd


def is_transposed_linear(layer: nn.Module) -> bool:
    """Whether it is GPT-2's ``Conv1D``, a linear layer with its weight the other way round."""
    return type(layer).__name__ == 'Conv1D' and hasattr(layer, 'nf')


def input_dimension(layer: nn.Module) -> tuple[int, int, int]:
    """Dimension of the weight that the inputs lie in, their number, and groups of them.

    Raises:
        ValueError: It is not known of this type of layer.
    """
    if isinstance(layer, _ConvTransposeNd) and layer.groups == 1:
        return 0, layer.in_channels, 1
    if isinstance(layer, _ConvNd) and not isinstance(layer, _ConvTransposeNd):
        return 1, layer.in_channels, layer.groups
    if isinstance(layer, nn.Linear):
        return 1, layer.in_features, 1
    if is_transposed_linear(layer):
        return 0, layer.weight.shape[0], 1
    raise ValueError(f'{type(layer).__name__}: not known how its inputs lie in its weight')


def output_dimension(layer: nn.Module) -> tuple[int, int]:
    """Dimension of the weight that the outputs lie in, and their number.

    Raises:
        ValueError: It is not known of this type of layer.
    """
    if isinstance(layer, _ConvTransposeNd) and layer.groups == 1:
        return 1, layer.out_channels
    if isinstance(layer, _ConvNd) and not isinstance(layer, _ConvTransposeNd):
        return 0, layer.out_channels
    if isinstance(layer, nn.Linear):
        return 0, layer.out_features
    if isinstance(layer, nn.Embedding):
        return 1, layer.embedding_dim
    weight = getattr(layer, 'weight', None)
    if isinstance(weight, torch.Tensor) and weight.dim() == 1:  # norm layers, scales
        return 0, weight.numel()
    if is_transposed_linear(layer):
        return 1, layer.nf
    raise ValueError(f'{type(layer).__name__}: not known how its outputs lie in its weight')


def masked_norm(
    layer: nn.Module, x: torch.Tensor, mask: torch.Tensor, data_format: str = 'channel_first'
) -> torch.Tensor:
    """What a layer norm gives, with its statistics weighted by a mask of the channels.

    Args:
        layer: A LayerNorm, RMSNorm or one of their relatives.
        x: What it maps.
        mask: Mask of its channels, shape (channels,).
        data_format: Where mmpretrain's LayerNorm2d finds the channels of images.
    """
    channels_first = (
        isinstance(layer, nn.LayerNorm)
        and type(layer) is not nn.LayerNorm
        and x.dim() == 4
        and data_format == 'channel_first'
    )
    if channels_first:
        x = x.movedim(1, -1)
    dtype = x.dtype
    # As torch's own norm layers, with statistics in full precision under AMP.
    with torch.autocast(x.device.type, enabled=False):
        x = x.float() if dtype in (torch.float16, torch.bfloat16) else x
        share = (mask / mask.sum()).to(x.dtype)
        if isinstance(layer, nn.LayerNorm):
            x = x - (x @ share).unsqueeze(-1)
            eps = layer.eps
        else:  # RMSNorm, of torch and of transformers
            eps = getattr(layer, 'variance_epsilon', getattr(layer, 'eps', None))
            eps = torch.finfo(x.dtype).eps if eps is None else eps
        x = x * torch.rsqrt((x * x) @ share + eps).unsqueeze(-1)
        weight, bias = getattr(layer, 'weight', None), getattr(layer, 'bias', None)
        x = x if weight is None else x * weight
        x = (x if bias is None else x + bias).to(dtype)
    return x.movedim(-1, 1) if channels_first else x
