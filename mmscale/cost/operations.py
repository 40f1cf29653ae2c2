"""Operations of torch that multiply matrices, by name: their multiply-adds and outputs."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable
from typing import Any

# How far from zero drawn numbers are: as the outputs of a layer of random weights.
_DRAWN = 0.01

# Names of operations that multiply matrices; where one of them cannot be counted, a warning says
# so. Upsampling (bilinear2d) and the fused cells of recurrent networks do not.
_MATRIX_WORK = re.compile(
    r'(.*_)?((add|badd|addb|b|int|int8|scaled|grouped|sparse)?mm|matmul|e?mv|addmv|v?dot|'
    r'conv\w*|linear|attention|attn|rnn|lstm|gru|einsum|cdist|trilinear)(_.*)?'
)
_POINTWISE = re.compile(r'.*(_cell|_backward|embedding.*|pad\w*)')


def is_matrix_work(name: str) -> bool:
    """Whether an operation multiplies matrices, by its name."""
    return bool(_MATRIX_WORK.fullmatch(name) and not _POINTWISE.fullmatch(name))


def has_bias(name: str, args: tuple) -> bool:
    """Whether an operation that :func:`matrix_formulas` knows adds a bias."""
    if name == 'addmm':
        return True
    return (name == 'linear' or 'conv' in name) and len(args) > 2 and args[2] is not None


def matrix_formulas() -> dict[str, Callable[[tuple, Any], tuple[int, int]]]:
    """Multiply-adds and outputs of the operations that multiply matrices, by name."""
    from torch.utils.flop_counter import conv_flop_count

    def convolution(args: tuple, output: Any) -> tuple[int, int]:
        images, weight, transposed = args[0], args[1], bool(args[6])
        if images.numel() and not output.numel():
            # Torch 2.4 lets this pass on the meta device alone.
            raise RuntimeError('the kernel is larger than the image')
        # Torch counts a multiplication and an addition as two.
        flops = conv_flop_count(images.shape, weight.shape, output.shape, transposed) // 2
        return flops, output.numel()

    def linear(args: tuple, output: Any) -> tuple[int, int]:
        return output.numel() * args[0].shape[-1], output.numel()

    def product(first: int) -> Callable[[tuple, Any], tuple[int, int]]:
        def formula(args: tuple, output: Any) -> tuple[int, int]:
            return output.numel() * args[first].shape[-1], output.numel()

        return formula

    def sum_of_products(args: tuple, output: Any) -> tuple[int, int]:
        return output.numel() * args[1].shape[0] * args[1].shape[-1], output.numel()

    def attention(args: tuple, output: Any) -> tuple[int, int]:
        query, key, value = args[:3]
        result = output[0] if isinstance(output, tuple) else output
        scores = math.prod(query.shape[:-1]) * key.shape[-2]
        return scores * (query.shape[-1] + value.shape[-1]), scores + result.numel()

    formulas = {'linear': linear, 'addbmm': sum_of_products}
    formulas |= dict.fromkeys(
        ('mm', 'bmm', 'mv', 'dot', 'vdot', '_int_mm', '_scaled_mm'), product(0)
    )
    formulas |= dict.fromkeys(('addmm', 'baddbmm', 'addmv'), product(1))
    formulas |= dict.fromkeys(('convolution', '_convolution'), convolution)
    formulas |= dict.fromkeys(
        (
            'scaled_dot_product_attention',
            '_scaled_dot_product_cudnn_attention',
            '_scaled_dot_product_efficient_attention',
            '_scaled_dot_product_flash_attention',
            '_scaled_dot_product_flash_attention_for_cpu',
        ),
        attention,
    )
    return formulas


def drawn_products() -> contextlib.AbstractContextManager[Any]:
    """A mode in which operations that multiply matrices output random numbers, without the work.

    So a module that needs real numbers on its way, but of which only the sizes matter, runs as if
    its weights were others. On the meta device it changes nothing.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_map_only

    known = matrix_formulas()
    random = torch.Generator().manual_seed(0)

    def draw(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.copy_(
            torch.empty_like(tensor, device='cpu').normal_(0, _DRAWN, generator=random)
        )

    class Draw(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
        ) -> Any:
            name = getattr(getattr(func, 'overloadpacket', func), '__name__', '')
            first = args[0] if args else None
            is_known = name.removesuffix('_') in known and isinstance(first, torch.Tensor)
            if not is_known or first.is_meta or not first.is_floating_point():
                return func(*args, **(kwargs or {}))
            if name.endswith('_'):
                return draw(first)
            shapes = tree_map_only(
                torch.Tensor,
                lambda one: torch.empty_like(one, device='meta'),
                (args, kwargs or {}),
            )
            output = func(*shapes[0], **shapes[1])
            return tree_map_only(
                torch.Tensor, lambda one: draw(torch.empty_like(one, device=first.device)), output
            )

    return Draw()
