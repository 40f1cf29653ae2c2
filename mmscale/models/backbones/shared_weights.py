"""SharedWeights: runs the layers of subnets on parts of a network's own weights."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.logging import print_log
from torch import nn
from torch.func import functional_call

from mmscale.models.backbones.blocks import checkpointed
from mmscale.models.backbones.slices import (
    Region,
    SubnetLayer,
    WeightSlice,
    index_of,
    set_tensor,
    slice_region,
    unshared,
)

# A layer that a subnet needs: its name in the network, and what it is made from.
Needed = tuple[str, Hashable]

# Layers of subnets that are kept; a space of the paper's size has fewer.
_MOST_LAYERS = 20_000


def _kind_of(name: str) -> str:
    """Which of a network's parts a layer is of: ``stem``, ``stages``, ..."""
    return name.partition('.')[0]


def _tensors_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _with_owners(module: nn.Module, own: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """Every module of a subnet's layer and the one of that name; a subnet may lack some."""
    owners = dict(own.named_modules(remove_duplicate=False))
    return [(part, owners[name]) for name, part in module.named_modules()]


class SharedWeights(nn.Module):
    """Mixed into a network of which a forward pass uses a subnet's part alone.

    A layer of a subnet is an ordinary layer of its own size. Its every tensor is a part of the
    tensor of that name in the network's own layer: :func:`slice_region` says which.
    """

    _recomputes: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._templates: dict[Needed, nn.Module] = {}
        self._layers: dict[tuple[str, Hashable, str], SubnetLayer] = {}
        self._slices: dict[tuple[str, Region], WeightSlice] = {}
        # In the order of their first use; keys alone matter.
        self._used: dict[SubnetLayer, None] = {}
        self._has_leaves = False
        # Behind the network, of the model around it, which registers them.
        self._followers: dict[str, nn.Module] = {}
        self._own_parameters: set[nn.Parameter] = set()

    def _make_layer(self, kind: str, part: Hashable) -> nn.Module:
        """A layer of a subnet, from what it is made from."""
        raise NotImplementedError

    def _own_layer(self, name: str) -> nn.Module:
        return self._followers[name] if name in self._followers else self.get_submodule(name)

    def _template(self, name: str, part: Hashable) -> nn.Module:
        """A layer of a subnet without weights, built once: few differ within a space."""
        key = _kind_of(name), part
        if key not in self._templates:
            # Kept for forward passes that train, wherever it was needed first.
            with torch.inference_mode(False), torch.device('meta'):
                self._templates[key] = self._make_layer(*key)
        return self._templates[key]

    def _regions(
        self, name: str, template: nn.Module, side: str
    ) -> Iterator[tuple[str, torch.Tensor, Region | None]]:
        """Name in the template, the whole tensor and the used part, of a layer's every tensor.

        There is no region where the whole is used.
        """
        allocated = _tensors_of(self._own_layer(name))
        for key, wanted in _tensors_of(template).items():
            tensor = allocated[key]
            if tensor.shape == wanted.shape:
                yield key, tensor, None
            else:
                yield key, tensor, slice_region(tensor.shape, wanted.shape, side)

    def _slice(self, name: str, parameter: nn.Parameter, region: Region | None) -> WeightSlice:
        """The one slice of a region of a parameter."""
        region = tuple((0, size) for size in parameter.shape) if region is None else region
        if (name, region) not in self._slices:
            self._slices[name, region] = WeightSlice.of(name, parameter, region)
        return self._slices[name, region]

    def _twin(self, name: str, part: Hashable) -> nn.Module:
        """A layer without weights that is to be given some."""
        template = self._template(name, part)
        # A neck or a head of any kind may know its layers by other ways than as submodules.
        is_foreign = name == 'neck' or name in self._followers
        return copy.deepcopy(template) if is_foreign else unshared(template)

    def _build_layer(self, name: str, part: Hashable, side: str) -> SubnetLayer:
        module = self._twin(name, part)
        slices = {}
        for key, tensor, region in self._regions(name, module, side):
            if isinstance(tensor, nn.Parameter):
                slices[key] = self._slice(f'{name}.{key}', tensor, region)
                used = slices[key].leaf
            else:
                used = tensor if region is None else tensor[index_of(region)]
            set_tensor(module, key, used)
        owners = _with_owners(module, self._own_layer(name))
        return SubnetLayer(
            module=module,
            slices=slices,
            owners=owners,
            memory=[
                (tensors, key, tensor, tensor.data_ptr())
                for _, holder in owners
                for tensors in (holder._parameters, holder._buffers)
                for key, tensor in tensors.items()
                if tensor is not None
            ],
            recomputed=_kind_of(name) == 'stages',
        )

    def _layer(self, name: str, part: Hashable, side: str) -> SubnetLayer:
        """The layer of that name, cut to what a subnet's part needs."""
        key = name, part, side
        if key not in self._layers:
            with torch.inference_mode(False):
                self._layers[key] = self._build_layer(name, part, side)
        return self._layers[key]

    def _functional(self, name: str, part: Hashable, side: str) -> Callable:
        """The layer of that name, with gradients that flow to whole parameters of any kind."""
        template = self._template(name, part)
        owners = _with_owners(template, self._own_layer(name))
        tensors = {
            key: tensor if region is None else tensor[index_of(region)]
            for key, tensor, region in self._regions(name, template, side)
        }

        def run(*args: Any, **kwargs: Any) -> Any:
            # What is frozen, or in eval mode, is so in this network's own modules.
            for module, owner in owners:
                module.training = owner.training
            return functional_call(template, tensors, args, kwargs)

        recomputes = _kind_of(name) == 'stages' and self._recomputes
        return checkpointed(run, template, tensors) if recomputes else run

    def _sliced(self, needed: Sequence[Needed], side: str) -> dict[str, Callable]:
        """What runs the layers of some names now: on leaves, which it remembers, or on views."""
        if len(self._layers) > _MOST_LAYERS:
            self._clear_caches()
            self._templates.clear()
        layers = [self._layer(*part, side) for part in needed]
        if not all(layer.is_current() for layer in layers):
            self._forget_layers()
            layers = [self._layer(*part, side) for part in needed]
        runs: dict[str, Callable] = {}
        for (name, _), layer in zip(needed, layers, strict=True):
            layer.follow_owners()
            runs[name] = layer.module
            if torch.is_grad_enabled():
                self._used[layer] = None
                if layer.recomputed and self._recomputes:
                    buffers = dict(layer.module.named_buffers())
                    runs[name] = checkpointed(layer.module, layer.module, buffers)
        return runs

    def _runs(self, needed: Sequence[Needed], side: str) -> dict[str, Callable]:
        """What runs the layers of some names on a subnet's part of this network's weights."""
        trains_leaves = self._has_leaves and self.training
        if not trains_leaves and (torch.is_grad_enabled() or not self._has_memory):
            return {name: self._functional(name, part, side) for name, part in needed}
        return self._sliced(needed, side)

    @property
    def _has_memory(self) -> bool:
        """Whether tensors have memory to look at; not while torch exports or vectorises."""
        if torch.compiler.is_compiling():
            return False
        try:
            return next(self.parameters()).data_ptr() >= 0
        except RuntimeError:
            return False

    def _copy_into(self, layer: nn.Module, name: str, side: str) -> None:
        """Gives a stand-alone layer its own contiguous copy of a subnet's part of the weights."""
        for key, tensor, region in self._regions(name, layer, side):
            part = tensor.detach() if region is None else tensor.detach()[index_of(region)]
            part = part.clone(memory_format=torch.contiguous_format)
            if isinstance(tensor, nn.Parameter):
                part = nn.Parameter(part, layer.get_parameter(key).requires_grad)
            set_tensor(layer, key, part)

    def _forget_layers(self) -> None:
        """Forgets views of memory that is replaced."""
        used = [part for parts in self.used_slices.values() for part in parts]
        if any(part.leaf is not part.owner and part.leaf.grad is not None for part in used):
            print_log(
                'the memory of a super-supernet is replaced before gradients are stepped: those '
                'of its slices are lost',
                'current',
                logging.WARNING,
            )
        self._used.clear()
        self._clear_caches()

    def _clear_caches(self) -> None:
        self._layers.clear()
        self._slices.clear()
        self._own_parameters.clear()

    def _apply(self, *args: Any, **kwargs: Any) -> SharedWeights:
        # Views would keep what a conversion replaces alive.
        self._forget_layers()
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        # A copy has memory of its own.
        return {
            **self.__dict__,
            '_layers': {},
            '_slices': {},
            '_used': {},
            '_own_parameters': set(),
        }

    @contextmanager
    def slices(self) -> Iterator[None]:
        """Forward passes in training mode use leaves; what they use is remembered."""
        before, self._has_leaves = self._has_leaves, True
        try:
            yield
        finally:
            self._has_leaves = before

    @property
    def used_slices(self) -> dict[str, list[WeightSlice]]:
        """Parameter name to its slices that were used since :meth:`forget_slices`.

        Frozen parameters are not among them.
        """
        found: dict[str, dict[WeightSlice, None]] = {}
        for layer in self._used:
            for part in layer.slices.values():
                if part.leaf.requires_grad:
                    found.setdefault(part.name, {})[part] = None
        return {name: list(parts) for name, parts in found.items()}

    def owns(self, parameter: nn.Parameter) -> bool:
        """Whether slices of a parameter are used, not the whole."""
        if not self._own_parameters:
            modules: Iterable[nn.Module] = (self, *self._followers.values())
            self._own_parameters.update(p for module in modules for p in module.parameters())
        return parameter in self._own_parameters

    def piece(self, part: WeightSlice, region: Region) -> WeightSlice:
        """The slice of a region of a slice's parameter; both in the parameter's coordinates."""
        return self._slice(part.name, part.owner, region)

    def forget_slices(self) -> None:
        """Clears the gradients of the used slices, and starts a new record of what is used."""
        for layer in self._used:
            for part in layer.slices.values():
                part.leaf.grad = None
        self._used.clear()
