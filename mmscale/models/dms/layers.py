"""What masking and pruning need to know of each type of layer."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._pytree import tree_leaves

from mmscale.errors import FOREIGN_ERRORS, UsageError


def is_transposed_linear(layer: nn.Module) -> bool:
    """Whether it is GPT-2's ``Conv1D``, a linear layer with its weight the other way round."""
    return type(layer).__name__ == 'Conv1D' and hasattr(layer, 'nf')


def is_root_mean_square(layer: nn.Module) -> bool:
    """Whether it is an RMSNorm, of torch or of one of the libraries that have their own."""
    return isinstance(layer, nn.RMSNorm) or (
        type(layer).__name__.endswith('RMSNorm')
        and isinstance(getattr(layer, 'weight', None), nn.Parameter)
        and (hasattr(layer, 'variance_epsilon') or hasattr(layer, 'eps'))
    )


def is_layer_norm(layer: nn.Module) -> bool:
    """Whether it is a LayerNorm, of torch or one written anew, as for channels of images."""
    return isinstance(layer, nn.LayerNorm) or (
        type(layer).__name__.endswith('LayerNorm')
        and isinstance(getattr(layer, 'weight', None), nn.Parameter)
        and hasattr(layer, 'normalized_shape')
        and hasattr(layer, 'eps')
    )


def is_response_norm(layer: nn.Module) -> bool:
    """Whether it is the global response norm of ConvNeXt V2, of mmpretrain or of timm."""
    return type(layer).__name__ in ('GRN', 'GlobalResponseNorm') and hasattr(layer, 'eps')


def response_channel(layer: nn.Module, data_format: str = 'channel_first') -> int:
    """The dimension that a global response norm has the channels of images in."""
    return getattr(layer, 'channel_dim', 1 if data_format == 'channel_first' else -1) % 4


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
    raise UsageError(f'{type(layer).__name__}: not known how its inputs lie in its weight')


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
    if is_response_norm(layer):
        weight = getattr(layer, 'gamma', weight)
    if isinstance(weight, torch.Tensor) and weight.dim() == 1:  # norm layers, scales
        return 0, weight.numel()
    if is_transposed_linear(layer):
        return 1, layer.nf
    raise UsageError(f'{type(layer).__name__}: not known how its outputs lie in its weight')


def input_channels(layer: nn.Module) -> int:
    """Dimension of what a layer maps that its inputs lie in, counted from the last."""
    return -1 - len(layer.kernel_size) if isinstance(layer, _ConvNd) else -1


def copy_for_inference(model: nn.Module) -> nn.Module:
    """A copy of any model in eval mode; ``eval()`` of mmpretrain's backbones returns nothing."""
    twin = copy.deepcopy(model)
    twin.eval()
    return twin


def takes_channels_first(layer: nn.Module) -> bool:
    """Whether a relative of LayerNorm has the channels of images before their sides.

    It is asked itself: mmpretrain's LayerNorm2d has them there, most others last.
    """
    if type(layer) is nn.LayerNorm or not is_layer_norm(layer):
        return False
    channels = layer.normalized_shape[0]
    like = layer.weight if layer.weight is not None else torch.empty(0)
    side = 1 if channels > 1 else 2
    try:
        # Its class's own code, as masks stand in for that of the layer.
        type(layer).forward(layer, like.new_zeros(1, channels, side, side))
    except FOREIGN_ERRORS:
        return False
    return True


def output_tensors(outputs: Any) -> list[torch.Tensor]:
    """The tensors of what a model gives, those in objects with attributes, too.

    Raises:
        UsageError: There are none, so that nothing could be compared.
    """
    found: list[torch.Tensor] = []
    seen: set[int] = set()
    waiting = tree_leaves(outputs)
    while waiting:
        leaf = waiting.pop(0)
        if isinstance(leaf, torch.Tensor):
            found.append(leaf)
        elif id(leaf) not in seen and not isinstance(leaf, nn.Module):
            seen.add(id(leaf))
            names = [field.name for field in fields(leaf)] if is_dataclass(leaf) else []
            parts = [getattr(leaf, name, None) for name in names]
            waiting += tree_leaves([*parts, *getattr(leaf, '__dict__', {}).values()])
    if not found:
        raise UsageError(f'the model gives no tensors, but {outputs!r:.60}')
    return found


def replace_submodule(model: nn.Module, name: str, module: nn.Module) -> None:
    """Puts a module in the place of the one of that dotted name, as torch 2.5's set_submodule."""
    owner, _, last = name.rpartition('.')
    setattr(model.get_submodule(owner), last, module)


class _MaskedNorm(torch.autograd.Function):
    """A layer norm with weighted statistics: in few passes, as it is much of a small network.

    With a share p of each channel, sum p = 1: ``n = (x - p.x) r`` and ``y = n weight + bias``,
    where ``r = (p.(x - p.x)^2 + eps)^-1/2``. Statistics of the channels that the mask drops have
    a share of 0.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        mask: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        eps: float,
        centred: bool,
    ) -> torch.Tensor:
        total = mask.sum()
        share = mask / total
        normed = x - (x @ share).unsqueeze(-1) if centred else x
        result = normed * normed
        scale = (result @ share).add_(eps).rsqrt_().unsqueeze(-1)
        normed = normed.mul_(scale) if centred else normed * scale
        ctx.save_for_backward(normed, scale, share, total, weight)
        ctx.centred, ctx.has_bias = centred, bias is not None
        if weight is None:
            return result.copy_(normed) if bias is None else torch.add(normed, bias, out=result)
        if bias is None:
            return torch.mul(normed, weight, out=result)
        return torch.addcmul(bias, normed, weight, out=result)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        normed, scale, share, total, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        channels = share.numel()
        ones = torch.ones_like(share) if weight is None else weight
        # torch's kernel for equal shares, of what is normed already: u - (sum u + n sum u n) / C
        # with u = gradient weight. From this follow the pulls of weighted statistics.
        rows = (torch.zeros_like(scale), torch.ones_like(scale))
        equal, of_ones, of_bias = torch.ops.aten.native_layer_norm_backward(
            gradient, normed, [channels], *rows, ones, ones, [True, True, True]
        )
        pulled = torch.ops.aten.native_layer_norm_backward(
            equal, normed, [channels], *rows, ones, ones, [False, True, False]
        )[1]
        shift = gradient @ ones
        # What moves all shares alike is no change: p.(x - p.x) = 0, and shares are of their sum.
        of_share = channels * (of_ones * ones - pulled)
        along = shift.flatten() @ normed.flatten(0, -2)
        of_share = -0.5 * (of_share + along if ctx.centred else of_share - along)
        of_mask = (of_share - of_share @ share) / total
        shares = channels * share
        of_x = equal.mul_(shares).addcmul_(gradient, ones - shares * ones)
        if not ctx.centred:
            of_x.addcmul_(shift.unsqueeze(-1), share)
        of_x.mul_(scale)
        of_weight = None if weight is None else of_ones
        return of_x, of_mask, of_weight, of_bias if ctx.has_bias else None, None, None


def masked_norm(
    layer: nn.Module,
    x: torch.Tensor,
    mask: torch.Tensor,
    data_format: str = 'channel_first',
    masks_output: bool = False,
    channels_first: bool = False,
) -> torch.Tensor:
    """What a layer norm gives, with its statistics weighted by a mask of the channels.

    Args:
        layer: A LayerNorm, RMSNorm or one of their relatives, a GroupNorm of one group, or a
            global response norm.
        x: What it maps.
        mask: Mask of its channels, shape (channels,).
        data_format: Where mmpretrain's LayerNorm2d finds the channels of images.
        masks_output: Whether the mask multiplies what the layer gives, too.
        channels_first: What :func:`takes_channels_first` says of the layer.
    """
    if is_response_norm(layer):
        return _masked_response(layer, x, mask, data_format, masks_output)
    is_group = isinstance(layer, nn.GroupNorm)
    channels_first = channels_first and x.dim() == 4 and data_format == 'channel_first'
    if channels_first:
        x = x.movedim(1, -1)
    dtype = x.dtype
    # As torch's own norm layers, with statistics in full precision under AMP.
    has_amp = torch.is_autocast_enabled(x.device.type)
    with torch.autocast(x.device.type, enabled=False) if has_amp else nullcontext():
        x = x.float() if dtype in (torch.float16, torch.bfloat16) else x
        centred = is_group or is_layer_norm(layer)
        if centred:
            eps = layer.eps
        else:  # RMSNorm, of torch and of transformers
            eps = getattr(layer, 'variance_epsilon', getattr(layer, 'eps', None))
            eps = torch.finfo(x.dtype).eps if eps is None else eps
        weight, bias = getattr(layer, 'weight', None), getattr(layer, 'bias', None)
        mask = mask.to(x.dtype)
        if masks_output:
            weight = mask if weight is None else weight * mask
            bias = None if bias is None else bias * mask
        if is_group:
            x = _masked_group(x, mask, weight, bias, eps).to(dtype)
        else:
            x = _MaskedNorm.apply(x, mask, weight, bias, eps, centred).to(dtype)
    return x.movedim(-1, 1) if channels_first else x


def _masked_group(
    x: torch.Tensor,
    mask: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    """A group norm of one group, of (N, C, ...), with channels weighted in its statistics."""
    share = mask / mask.sum()
    maps = x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)
    centred = maps - (maps.mean(2) @ share).view(-1, 1, 1)
    variance = (centred.square().mean(2) @ share).view(-1, 1, 1)
    normed = centred * (variance + eps).rsqrt()
    if weight is not None:
        normed = normed * weight.unsqueeze(1)
    if bias is not None:
        normed = normed + bias.unsqueeze(1)
    return normed.view(x.shape)


def _masked_response(
    layer: nn.Module, x: torch.Tensor, mask: torch.Tensor, data_format: str, masks_output: bool
) -> torch.Tensor:
    """A global response norm, with its mean over channels weighted by a mask of these."""
    channel = response_channel(layer, data_format)
    sides = (2, 3) if channel == 1 else (1, 2)
    weight, bias, mask = (
        tensor.view(-1, *[1] * (3 - channel))
        for tensor in (
            layer.gamma if hasattr(layer, 'gamma') else layer.weight,
            layer.beta if hasattr(layer, 'beta') else layer.bias,
            mask.to(x.dtype),
        )
    )
    response = torch.linalg.vector_norm(x, dim=sides, keepdim=True)
    mean = (response * mask).sum(channel, keepdim=True) / mask.sum()
    result = weight * (x * (response / (mean + layer.eps))) + bias + x
    return result * mask if masks_output else result
