"""BFloat16OptimWrapper: mixed precision without loss scaling, on CPUs too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from torch import nn

from mmscale.registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Runs forward passes under bfloat16 autocast.

    MMEngine's ``AmpOptimWrapper`` refuses to work without a GPU, and scales the loss, which
    bfloat16 with its wide range does not need. Weights, gradients and optimizer stay float32.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """The context of a forward pass."""
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, torch.bfloat16):
            yield
