"""Follows channels through one forward pass of any model, operation by operation.

Every dimension of a tensor may have labels, one for each index: the channels of the layer that
made it. Operations hand them on, join those that meet, and fix those of which it is not understood
what becomes of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmscale.models.dms.labels import Labels
from mmscale.models.dms.layers import (
    input_channels,
    is_layer_norm,
    is_response_norm,
    is_root_mean_square,
    is_transposed_linear,
    output_dimension,
    output_tensors,
    response_channel,
    takes_channels_first,
)
from mmscale.models.dms.operations import Dims, Tensors


class Place(NamedTuple):
    """A dimension of a layer or parameter that labels lie in.

    Attributes:
        name: Of the layer, or of the parameter.
        role: As of a member of a group.
        dim: Of a parameter, counted from the end.
    """

    name: str
    role: str
    dim: int | None = None


def layer_role(layer: nn.Module) -> str | None:
    """What a layer does with channels: ``out`` makes new ones; None if it is not known.

    Of convolutions and linear layers inputs are meant apart, see :class:`Flow`.
    """
    if isinstance(layer, _ConvNd) and layer.groups > 1:
        if layer.groups == layer.in_channels == layer.out_channels:
            return 'through'
        return 'out' if layer.groups < layer.in_channels else None
    if isinstance(layer, (_ConvNd, nn.Linear, nn.Embedding)) or is_transposed_linear(layer):
        return 'out'
    if is_response_norm(layer):
        return 'norm'
    if getattr(layer, 'weight', None) is None:
        return None
    if isinstance(layer, (_BatchNorm, _InstanceNorm, nn.PReLU)):
        return 'through'
    if isinstance(layer, nn.GroupNorm):
        return 'norm' if layer.num_groups == 1 else 'through'
    if is_root_mean_square(layer) and layer.weight.dim() == 1:
        return 'norm'
    if is_layer_norm(layer) and len(layer.normalized_shape) == 1:
        return 'norm'
    return None


_LAYERS = (*(_ConvNd, nn.Linear, nn.Embedding, _BatchNorm, _InstanceNorm, nn.PReLU, nn.GroupNorm),)


def is_followed(layer: nn.Module) -> bool:
    """Whether a layer is followed as one, and not by the operations in it."""
    others = (is_transposed_linear, is_layer_norm, is_root_mean_square, is_response_norm)
    return isinstance(layer, _LAYERS) or any(is_one(layer) for is_one in others)


class Flow(TorchDispatchMode):
    """One forward pass of a model, with the labels of its channels.

    Args:
        model: The model, in eval mode; it gets hooks.

    Attributes:
        labels: What is known of the labels.
        places: Labels of the channels of each place that they came to, shape (channels,).
        called: Names of the layers that were called.
        used: Names of the parameters that operations used, inside and outside of layers.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.labels = Labels()
        self.places: dict[Place, torch.Tensor] = {}
        self.called: set[str] = set()
        self.used: set[str] = set()
        self._model = model
        self._tensors = Tensors(self.labels, self._of_parameter)
        self._inside = 0
        # One layer may have several names; one tensor in several layers is another matter.
        owned = [
            (id(tensor), f'{name}.{last}'.removeprefix('.'))
            for name, layer in model.named_modules()
            for last, tensor in (*layer._parameters.items(), *layer._buffers.items())
            if tensor is not None
        ]
        self._names = dict(reversed(owned))
        times = Counter(tensor for tensor, _ in owned)
        self._shared = {name for tensor, name in owned if times[tensor] > 1}
        # Parameters of layers lie where their layers do.
        self._own = {
            id(tensor)
            for layer in model.modules()
            if is_followed(layer)
            for tensor in (*layer.parameters(recurse=False), *layer.buffers(recurse=False))
        }
        for name, layer in model.named_modules():
            if is_followed(layer):
                layer.register_forward_pre_hook(self._enter, with_kwargs=True)
                layer.register_forward_hook(self._hook(name), with_kwargs=True, always_call=True)
            else:
                layer.register_forward_pre_hook(partial(self._start, name))
                layer.register_forward_hook(self._end, always_call=True)

    @torch.no_grad()
    def run(self, inputs: Sequence[torch.Tensor]) -> None:
        """Follows the forward pass on these positional arguments."""
        with self:
            outputs = self._model(*inputs)
        for leaf in output_tensors(outputs):
            for labels in self._tensors.dims(leaf).values():
                self.labels.leave(labels)

    @property
    def heads(self) -> list[tuple[torch.Tensor, str, str]]:
        """Labels of heads of attention, and the module and the attribute that count them."""
        return self._tensors.heads

    def _start(self, name: str, module: nn.Module, args: tuple) -> None:
        self._tensors.running.append((name, module))

    def _end(self, *_: Any) -> None:
        self._tensors.running.pop()

    def _enter(self, *_: Any) -> None:
        self._inside += 1

    def _hook(self, name: str) -> Callable[..., None]:
        def leave(layer: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            self._inside -= 1
            values = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
            self.called.add(name)
            if self._inside or not isinstance(output, torch.Tensor) or not values:
                return
            dims = self._tensors.dims(values[0])
            try:
                result = self._layer(name, layer, values[0], dims, output, (args, kwargs))
            except (ArithmeticError, LookupError, ValueError, RuntimeError):
                # A relative of a layer, that maps something else.
                self._tensors.fix_all(values, name)
                result = {}
            self._tensors.set(output, result)

        return leave

    def _layer(
        self,
        name: str,
        layer: nn.Module,
        x: torch.Tensor,
        dims: Dims,
        output: torch.Tensor,
        call: tuple[tuple, dict],
    ) -> Dims:
        """Labels of what a layer gives."""
        role = layer_role(layer)
        shared = any(
            f'{name}.{last}'.removeprefix('.') in self._shared for last in ('weight', 'bias')
        )
        if isinstance(layer, nn.PReLU) and layer.num_parameters == 1:
            return dims
        if role is None or shared:
            why = 'whose weight other layers share' if shared else 'which is not understood'
            self._tensors.fix_all([x], f'{name}, {why}')
            return {}
        if isinstance(layer, nn.Embedding):
            return {output.dim() - 1: self._made(name, layer)}
        channel = self._channel_of(layer, x, call)
        entering = self._tensors.entering(dims, channel, x.shape[channel])
        others = {dim: labels for dim, labels in dims.items() if dim != channel}
        if role != 'out' and not isinstance(layer, _ConvNd):
            if isinstance(layer, nn.GroupNorm) or is_response_norm(layer):
                self._tensors.fix_dims(others, f'{name} takes its statistics over them')
                others = {}
            if getattr(layer, 'num_groups', 1) > 1:
                self._tensors.join_rows(entering, layer.num_groups, within=True, reason=name)
            self._come(Place(name, role), entering)
            for last in ('gamma', 'beta') if is_response_norm(layer) else ():
                if last in layer._parameters:
                    self._come(Place(f'{name}.{last}', 'through', -1), entering)
            return {**others, channel: entering}
        if isinstance(layer, _ConvNd):
            # What varies along the sides of a map is mixed.
            first = x.dim() - len(layer.kernel_size)
            sides = {d: v for d, v in others.items() if d >= first}
            self._tensors.fix_dims(sides, f'{name} mixes them')
            others = {d: v for d, v in others.items() if d < first}
            if role == 'through':
                self._come(Place(name, role), entering)
                return {**others, channel: entering}
        self._come(Place(name, 'in'), entering)
        made = self._made(name, layer)
        if isinstance(layer, _ConvNd) and layer.groups > 1:
            self._tensors.join_rows(entering, layer.groups, within=False, reason=name)
        return {**others, channel: made}

    def _channel_of(self, layer: nn.Module, x: torch.Tensor, call: tuple[tuple, dict]) -> int:
        """The dimension of what a layer maps that its channels lie in."""
        if isinstance(layer, _ConvNd):
            return x.dim() + input_channels(layer)
        if isinstance(layer, (_BatchNorm, _InstanceNorm, nn.PReLU, nn.GroupNorm)):
            return 1
        args, kwargs = call
        data_format = kwargs.get('data_format', args[1] if len(args) > 1 else 'channel_first')
        if is_response_norm(layer):
            return response_channel(layer, data_format)
        first = x.dim() == 4 and data_format == 'channel_first' and takes_channels_first(layer)
        return 1 if first else x.dim() - 1

    def _made(self, name: str, layer: nn.Module) -> torch.Tensor:
        """Labels of the outputs that a layer makes, the same at each call."""
        place = Place(name, 'out')
        if place not in self.places:
            made = self.places[place] = self.labels.fresh(output_dimension(layer)[1])
            if len(made) == 1:
                self.labels.fix(made, 'there is one channel alone')
            if isinstance(layer, _ConvNd) and layer.groups > 1:
                self._tensors.join_rows(made, layer.groups, within=False, reason=name)
        return self.places[place]

    def _come(self, place: Place, entering: torch.Tensor) -> None:
        """Notes labels that come to a place, where others may have come before."""
        known = self.places.setdefault(place, entering)
        if known is not entering:
            self.labels.join(known, entering, f'{place.name} also maps what has to stay')

    def _of_parameter(self, tensor: torch.Tensor) -> Dims:
        """Labels of a parameter or buffer that is used outside of the layers that are followed."""
        name = self._names.get(id(tensor))
        dims: Dims = {}
        if name is not None and id(tensor) not in self._own and tensor.is_floating_point():
            owner, _, last = name.rpartition('.')
            for dim, size in enumerate(tensor.shape):
                if size > 1:
                    place = Place(name, 'through', dim - tensor.dim())
                    if last in ('weight', 'bias') and tensor.dim() == 1:
                        place = Place(owner, 'through')  # a layer that scales or shifts
                    dims[dim] = self.labels.fresh(size)
                    self._come(place, dims[dim])
            if name in self._shared:
                self._tensors.fix_dims(dims, f'{name} is shared')
        return dims

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        self.used.update(self._names[id(x)] for x in tensors if id(x) in self._names)
        if self._inside or not any(self._tensors.dims(x) for x in tensors):
            return result
        outputs = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        name = function.overloadpacket.__name__
        named = dict(zip((one.name for one in function._schema.arguments), args, strict=False))
        try:
            found = self._tensors.operation(function, name, named | kwargs, tensors, outputs)
        except (ArithmeticError, LookupError, ValueError, RuntimeError, TypeError):
            found = None
        if found is None:
            self._tensors.fix_all(tensors, f'{name} works on them')
            found = [{}] * len(outputs)
        for output, dims in zip(outputs, found, strict=False):
            self._tensors.set(output, dims)
        return result
