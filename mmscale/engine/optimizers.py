"""Optimizers of other libraries that our recipes name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mmscale.registry import OPTIMIZERS

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer


@OPTIMIZERS.register_module(name='RMSpropTF')
def rmsprop_tf(params: Iterable[Tensor | dict], **settings: Any) -> Optimizer:
    """The RMSprop of timm, which steps as TensorFlow's: what recipes of EfficientNets mean by it.

    torch's own starts with an average of squared gradients of 0 instead of 1 and adds epsilon
    after the root, so that at the same rates its steps are far larger.

    Args:
        params: Parameters, or groups of them.
        **settings: Arguments of ``timm.optim.RMSpropTF``, as ``lr`` and ``eps``.

    Raises:
        ImportError: timm is not installed.
    """
    try:
        from timm.optim import RMSpropTF
    except ImportError:
        raise ImportError('mmscale.RMSpropTF needs timm: pip install timm') from None
    return RMSpropTF(params, **settings)
