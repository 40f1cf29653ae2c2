"""Keeps what a step did not use out of the optimizer's reach."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.optim import Optimizer

from mmscale.models.backbones import Region, SuperNet, index_of


class SliceUpdate:
    """Makes any element-wise optimizer update only the elements that a step used.

    A sliced weight has a full-size gradient that is zero outside the slice, but weight decay and
    momentum move those elements too. Around every optimizer step this object puts them, and the
    optimizer's state for them, back bit by bit; state that did not exist before stays 0 there.

    Scalars in an optimizer's state belong to the whole tensor: Adam's step count is that of the
    steps that used any part of the tensor, so its bias correction is slightly too weak for rarely
    used elements. Optimizers that look at whole tensors (LAMB, LARS, Muon) see zero gradients
    outside the slice. An exponential moving average of the weights averages all elements, and
    one that does not change stays what it is.

    Args:
        optimizer: Any ``torch.optim`` optimizer that holds the super-supernet's parameters.
        super_net: Records what was used.
    """

    def __init__(self, optimizer: Optimizer, super_net: SuperNet) -> None:
        self._super_net = super_net
        self._parameters = dict(super_net.named_parameters())
        self._before: dict[str, tuple[torch.Tensor, dict[str, torch.Tensor]]] = {}
        self._handles = [
            optimizer.register_step_pre_hook(self._save),
            optimizer.register_step_post_hook(self._restore),
        ]

    def remove(self) -> None:
        """Takes the hooks off the optimizer."""
        for handle in self._handles:
            handle.remove()

    def _save(self, optimizer: Optimizer, *_: object) -> None:
        self._before = {}
        for name, parameter in self._parameters.items():
            regions = self._super_net.used_regions.get(name, ())
            whole = tuple((0, size) for size in parameter.shape)
            if parameter.grad is None or whole in regions:
                continue
            state = {
                key: value.clone()
                for key, value in optimizer.state.get(parameter, {}).items()
                if torch.is_tensor(value) and value.shape == parameter.shape
            }
            self._before[name] = parameter.detach().clone(), state

    @torch.no_grad()
    def _restore(self, optimizer: Optimizer, *_: object) -> None:
        for name, (weights, state) in self._before.items():
            parameter = self._parameters[name]
            regions = self._super_net.used_regions.get(name, ())
            self._keep_outside(parameter, weights, regions)
            for key, value in optimizer.state.get(parameter, {}).items():
                if torch.is_tensor(value) and value.shape == parameter.shape:
                    before = state.get(key)
                    self._keep_outside(
                        value, torch.zeros_like(value) if before is None else before, regions
                    )
        self._before = {}

    @staticmethod
    def _keep_outside(
        tensor: torch.Tensor, before: torch.Tensor, regions: Iterable[Region]
    ) -> None:
        for region in regions:
            index = index_of(region)
            before[index] = tensor[index]
        tensor.copy_(before)
