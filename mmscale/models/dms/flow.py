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
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from mmscale.models.dms.labels import FIXED, Labels
from mmscale.models.dms.layers import (
    input_channels,
    is_layer_norm,
    is_root_mean_square,
    is_transposed_linear,
    output_dimension,
    takes_channels_first,
)

# Labels of a tensor by its dimensions, those that have some.
Dims = dict[int, torch.Tensor]

# Element by element, without torch's own tag of such operations.
_POINTWISE = {
    *('clone', '_to_copy', 'detach', 'alias', 'lift_fresh', 'copy', 'contiguous', 'native_dropout'),
    *('gelu', 'silu', 'mish', 'elu', 'leaky_relu', 'hardtanh', 'hardswish', 'hardsigmoid', 'relu6'),
    *('softplus', 'threshold', 'masked_fill', 'where', 'clamp', 'bernoulli', 'addcmul', 'addcdiv'),
    *('log_sigmoid_forward', 'celu', 'selu', 'softshrink', 'hardshrink', 'dropout'),
}
# What moves numbers and keeps their order along each dimension.
_MOVES = {
    *('view', '_unsafe_view', 'reshape', '_reshape_alias', 'permute', 'transpose', 't', 'expand'),
    *('squeeze', 'unsqueeze', 'repeat', 'unfold', 'view_copy', 'flatten', 'numpy_T', 'movedim'),
    *('pixel_shuffle', 'pixel_unshuffle', 'channel_shuffle', 'native_channel_shuffle'),
}
# Of these, those that want no copy.
_VIEWS = {'view', '_unsafe_view', '_reshape_alias', 'view_copy', 'reshape'}
# What may keep some numbers alone, or change their order.
_PICKS = {'slice', 'select', 'index', 'gather', 'index_select', 'narrow', 'roll', 'flip', 'take'}
_SPLITS = {'split', 'split_with_sizes', 'chunk', 'unbind', 'unsafe_split', 'tensor_split'}
_REDUCTIONS = {
    *('mean', 'sum', 'amax', 'amin', 'max', 'min', 'var', 'std', 'var_mean', 'norm', 'prod'),
    *('linalg_vector_norm', 'logsumexp', 'argmax', 'argmin', 'any', 'all'),
}
_ALONG = {'_softmax', '_log_softmax', 'cumsum', 'cumprod', 'sort', 'softmax', 'log_softmax'}
_PRODUCTS = {'mm', 'bmm', 'addmm', 'baddbmm', 'matmul', 'mv'}
# What works on the last dimensions, those of a map, and how many these are.
_MAPS = {
    **{f'{kind}_pool{n}d': n for kind in ('avg', 'adaptive_avg', '_adaptive_avg') for n in (1, 2, 3)},
    **{f'max_pool{n}d': n for n in (1, 2, 3)},
    **{f'{kind}max_pool{n}d_with_indices': n for kind in ('', 'adaptive_') for n in (2, 3)},
    **{f'adaptive_max_pool{n}d': n for n in (2, 3)},
    **{f'{kind}_pad{n}d': n for kind in ('reflection', 'replication') for n in (1, 2, 3)},
    **{f'upsample_{kind}2d': 2 for kind in ('nearest', '_nearest_exact', 'bilinear', 'bicubic')},
    **{f'_upsample_{kind}2d_aa': 2 for kind in ('bilinear', 'bicubic')},
    **{'upsample_linear1d': 1, 'upsample_nearest1d': 1, '_upsample_nearest_exact2d': 2},
    'grid_sampler_2d': 2,
}
_ATTENTION = {
    '_scaled_dot_product_flash_attention_for_cpu',
    '_scaled_dot_product_flash_attention',
    '_scaled_dot_product_efficient_attention',
    '_scaled_dot_product_attention_math',
}


# Names of attributes that count heads of attention.
_HEADS = ('num_heads', 'num_attention_heads', 'n_heads', 'n_head', 'heads', 'nhead')


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


_LAYERS = (
    *(_ConvNd, nn.Linear, nn.Embedding, _BatchNorm, _InstanceNorm, nn.PReLU, nn.GroupNorm),
)


def is_followed(layer: nn.Module) -> bool:
    """Whether a layer is followed as one, and not by the operations in it."""
    others = (is_transposed_linear, is_layer_norm, is_root_mean_square)
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
        heads: Labels of heads of attention, and the module and the attribute that count them.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.labels = Labels()
        self.places: dict[Place, torch.Tensor] = {}
        self.called: set[str] = set()
        self.used: set[str] = set()
        self.heads: list[tuple[torch.Tensor, str, str]] = []
        self._model = model
        self._of: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._inside = 0
        self._running: list[tuple[str, nn.Module]] = []
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
        for leaf in tree_leaves(outputs):
            if isinstance(leaf, torch.Tensor):
                for labels in self._dims(leaf).values():
                    self.labels.leave(labels)

    # Layers

    def _start(self, name: str, module: nn.Module, args: tuple) -> None:
        self._running.append((name, module))

    def _end(self, *_: Any) -> None:
        self._running.pop()

    def _enter(self, *_: Any) -> None:
        self._inside += 1

    def _hook(self, name: str) -> Callable[..., None]:
        def leave(layer: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            self._inside -= 1
            values = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
            self.called.add(name)
            if self._inside or not isinstance(output, torch.Tensor) or not values:
                return
            dims = self._dims(values[0])
            try:
                result = self._layer(name, layer, values[0], dims, output, (args, kwargs))
            except (ArithmeticError, LookupError, ValueError, RuntimeError):
                # A relative of a layer, that maps something else.
                self._fix_all(values, name)
                result = {}
            self._set(output, result)

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
            self._fix_all([x], f'{name}, {why}')
            return {}
        if isinstance(layer, nn.Embedding):
            return {output.dim() - 1: self._made(name, layer)}
        channel = self._channel_of(layer, x, call)
        entering = self._entering(dims, channel, x.shape[channel])
        others = {dim: labels for dim, labels in dims.items() if dim != channel}
        if role != 'out' and not isinstance(layer, _ConvNd):
            if isinstance(layer, nn.GroupNorm):
                self._fix_dims(others, f'{name} takes its statistics over them')
                others = {}
                if layer.num_groups > 1:
                    self._join_rows(entering, layer.num_groups, within=True, reason=name)
            self._come(Place(name, role), entering)
            return {**others, channel: entering}
        if isinstance(layer, _ConvNd):
            # What varies along the sides of a map is mixed.
            first = x.dim() - len(layer.kernel_size)
            self._fix_dims({d: v for d, v in others.items() if d >= first}, f'{name} mixes them')
            others = {d: v for d, v in others.items() if d < first}
            if role == 'through':
                self._come(Place(name, role), entering)
                return {**others, channel: entering}
        self._come(Place(name, 'in'), entering)
        made = self._made(name, layer)
        if isinstance(layer, _ConvNd) and layer.groups > 1:
            self._join_rows(entering, layer.groups, within=False, reason=name)
        return {**others, channel: made}

    def _channel_of(self, layer: nn.Module, x: torch.Tensor, call: tuple[tuple, dict]) -> int:
        """The dimension of what a layer maps that its channels lie in."""
        if isinstance(layer, _ConvNd):
            return x.dim() + input_channels(layer)
        if isinstance(layer, (_BatchNorm, _InstanceNorm, nn.PReLU, nn.GroupNorm)):
            return 1
        args, kwargs = call
        data_format = kwargs.get('data_format', args[1] if len(args) > 1 else 'channel_first')
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
                self._join_rows(made, layer.groups, within=False, reason=name)
        return self.places[place]

    def _come(self, place: Place, entering: torch.Tensor) -> None:
        """Notes labels that come to a place, where others may have come before."""
        known = self.places.setdefault(place, entering)
        if known is not entering:
            self.labels.join(known, entering, f'{place.name} also maps what has to stay')

    def _join_rows(self, labels: torch.Tensor, parts: int, within: bool, reason: str) -> None:
        """Joins labels inside each of equal parts, or else those of the same slots of them."""
        rows = labels.view(parts, -1)
        rows = rows.T if within else rows
        self.labels.join(
            rows[:1].expand_as(rows).flatten(), rows.flatten(), f'{reason} works on parts of them'
        )

    # Tensors

    def _dims(self, tensor: torch.Tensor) -> Dims:
        """Labels of a tensor; those of a parameter are made when it is first used."""
        if tensor in self._of:
            return self._of[tensor]
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
                self._fix_dims(dims, f'{name} is shared')
            self._of[tensor] = dims
        return dims

    def _set(self, tensor: torch.Tensor, dims: Dims) -> None:
        # A dimension of one index has nothing that could go.
        self._of[tensor] = {dim: v for dim, v in dims.items() if tensor.shape[dim] > 1}

    def _entering(self, dims: Dims, dim: int, size: int) -> torch.Tensor:
        """Labels along a dimension, FIXED where there are none."""
        return dims[dim] if dim in dims else torch.full((size,), FIXED)

    def _fix_dims(self, dims: Dims, reason: str) -> None:
        for labels in dims.values():
            self.labels.fix(labels, reason)

    def _fix_all(self, values: Sequence[torch.Tensor], reason: str) -> None:
        for value in values:
            self._fix_dims(self._dims(value), reason)

    # Operations

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        self.used.update(self._names[id(x)] for x in tensors if id(x) in self._names)
        if self._inside or not any(self._dims(x) for x in tensors):
            return result
        outputs = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        name = function.overloadpacket.__name__
        named = dict(zip((one.name for one in function._schema.arguments), args, strict=False))
        try:
            found = self._operation(function, name, named | kwargs, tensors, outputs)
        except (ArithmeticError, LookupError, ValueError, RuntimeError, TypeError):
            found = None
        if found is None:
            self._fix_all(tensors, f'{name} works on them')
            found = [{}] * len(outputs)
        for output, dims in zip(outputs, found, strict=False):
            self._set(output, dims)
        return result

    def _operation(
        self,
        function: Any,
        name: str,
        named: dict[str, Any],
        tensors: list[torch.Tensor],
        outputs: list[torch.Tensor],
    ) -> list[Dims] | None:
        """Labels of what an operation gives; None if it is not followed."""
        base = name.removesuffix('_')
        if torch.Tag.pointwise in function.tags or base in _POINTWISE:
            return [self._meet(tensors, output.shape, base) for output in outputs]
        x = tensors[0]
        dims = self._dims(x)
        if base in ('cat', 'concat'):
            return [self._concatenated(tensors, named.get('dim', 0) % outputs[0].dim(), outputs[0])]
        if base == 'stack':
            at = named.get('dim', 0) % outputs[0].dim()
            rows = self._meet(tensors, x.shape, base)
            return [{dim + (dim >= at): labels for dim, labels in rows.items()}]
        if base in _MOVES or base in _PICKS or base in _SPLITS:
            return self._moved(function, base, named, x, outputs)
        if name == 'as_strided_' and all(x.shape[d] == len(v) for d, v in dims.items()):
            return [dims]  # the same form with other strides
        if base == 'constant_pad_nd':
            return [self._padded(dims, named['pad'], x.dim())]
        if base in _REDUCTIONS:
            return self._reduced(base, named, x, outputs)
        if base in _ALONG:
            along = named.get('dim', -1) % x.dim()
            return [self._without(dims, (along,), base)] * len(outputs)
        if base in _MAPS and outputs[0].dim() == x.dim():
            sides = range(x.dim() - _MAPS[base], x.dim())
            return [self._without(dims, sides, base)] * len(outputs)
        if base in _PRODUCTS:
            return [self._product(base, tensors, outputs[0])]
        if base in _ATTENTION:
            query, key, value = tensors[:3]
            return [self._attended(base, query, key, value)]
        if base == '_prelu_kernel':
            return [self._meet(tensors, outputs[0].shape, base)]
        return None

    def _meet(
        self,
        tensors: Sequence[torch.Tensor],
        shape: Sequence[int],
        reason: str,
        ends: int = 0,
    ) -> Dims:
        """Labels of what an operation gives that broadcasts what it maps, but for last dimensions."""
        result: Dims = {}
        for dim, size in enumerate(shape):
            if size == 1:
                continue
            met = []
            for tensor in tensors:
                own = dim - len(shape) + tensor.dim() - ends
                if own >= 0 and tensor.shape[own] == size:
                    met.append(self._entering(self._dims(tensor), own, size))
            labelled = [labels for labels in met if labels.any()]
            if labelled:
                result[dim] = labelled[0]
                for labels in met:
                    if labels is not labelled[0]:
                        self.labels.join(labelled[0], labels, f'{reason} with what has to stay')
        return result

    def _concatenated(
        self, tensors: Sequence[torch.Tensor], at: int, output: torch.Tensor
    ) -> Dims:
        parts = [tensor for tensor in tensors if tensor.dim() == output.dim()]
        result: Dims = {}
        for dim in range(output.dim()):
            rows = [self._entering(self._dims(part), dim, part.shape[dim]) for part in parts]
            if dim == at:
                joined = torch.cat(rows)
                if joined.any():
                    result[dim] = joined
            elif any(row.any() for row in rows):
                first = next(row for row in rows if row.any())
                result[dim] = first
                for row in rows:
                    self.labels.join(first, row, 'a concatenation with what has to stay')
        return result

    def _moved(
        self,
        function: Any,
        base: str,
        named: dict[str, Any],
        x: torch.Tensor,
        outputs: list[torch.Tensor],
    ) -> list[Dims] | None:
        """Labels of what is moved: the operation itself moves them, dimension by dimension."""
        result: list[Dims] = [{} for _ in outputs]
        argument = next(key for key, value in named.items() if value is x)
        for dim, labels in self._dims(x).items():
            if base == 'channel_shuffle' or base == 'native_channel_shuffle':
                self._join_rows(labels, named['groups'], within=False, reason=base)
            if base == 'pixel_shuffle':
                factor = named['upscale_factor'] ** 2
                self._join_rows(labels, x.shape[dim] // factor, within=True, reason=base)
            shape = [1] * x.dim()
            shape[dim] = -1
            spread = labels.view(shape).expand(x.shape)
            indices = tree_map(
                lambda value: value.cpu() if isinstance(value, torch.Tensor) else value,
                {key: value for key, value in named.items() if key != argument},
            )
            if base in _VIEWS:
                moved = [spread.reshape(outputs[0].shape)]
            else:
                moved = tree_leaves(function(**{argument: spread}, **indices))
            found = [self._along(one, base) for one in moved]
            if base in _SPLITS:
                self._split(labels, found, base)
            for one, (at, along) in zip(result, found, strict=True):
                if base in _PICKS and not torch.equal(along, labels):
                    if base == 'slice' and self._is_part(labels, along, named.get('start')):
                        self._join_rows(labels, len(labels) // len(along), False, base)
                        one[dim] = along
                        continue
                    self.labels.fix(labels, f'{base} picks some of them')
                elif at is not None:
                    if at in one:
                        self.labels.fix(along, f'{base} merges them with others')
                        self.labels.fix(one.pop(at), f'{base} merges them with others')
                    else:
                        one[at] = along
        return result

    def _is_part(self, labels: torch.Tensor, along: torch.Tensor, start: int | None) -> bool:
        """Whether a slice is one of equal parts, as halves are."""
        size, first = len(along), start or 0
        return (
            len(labels) % size == 0 == first % size
            and size > 1
            and torch.equal(labels[first : first + size], along)
        )

    def _split(
        self, labels: torch.Tensor, found: list[tuple[int | None, torch.Tensor]], base: str
    ) -> None:
        """Parts of a split have to stay equally wide, as what splits may do so by their number."""
        parts = [along for _, along in found]
        if all(torch.equal(part, labels) for part in parts):
            return  # along another dimension
        if len({len(part) for part in parts}) > 1 or len(parts[0]) <= 1:
            self.labels.fix(labels, f'{base} makes unequal parts of them')
            return
        for part in parts[1:]:
            self.labels.join(parts[0], part, f'{base} takes what has to stay with them')

    def _along(self, moved: torch.Tensor, base: str) -> tuple[int | None, torch.Tensor]:
        """The dimension that labels vary along, and the labels.

        Where these are several, a view has split their dimension, and of what it makes of it one
        number alone can change: that of heads, where the running module counts such, or else the
        last, that is slots in each of the parts go together.
        """
        varying = []
        for dim, (size, stride) in enumerate(zip(moved.shape, moved.stride(), strict=True)):
            first = moved.narrow(dim, 0, 1)
            if size > 1 and stride and not torch.equal(moved, first.expand_as(moved)):
                varying.append(dim)
            else:
                moved = first
        if not varying:
            return None, moved.flatten()[:1]
        heads = self._counted(moved, varying)
        at = heads[0] if heads else varying[-1]
        rows = moved.movedim(at, -1).flatten(0, -2) if moved.dim() > 1 else moved[None]
        if len(rows) > 1:
            self.labels.join(
                rows[:1].expand_as(rows).flatten(), rows.flatten(), f'{base} makes parts of them'
            )
        if heads:
            self.heads.append((rows[0], *heads[1:]))
        return at, rows[0]

    def _counted(self, moved: torch.Tensor, varying: Sequence[int]) -> tuple[int, str, str] | None:
        """Which of several dimensions is of heads, and the module and attribute that count them."""
        if len(varying) > 1 and self._running:
            name, module = self._running[-1]
            # Before the last, which is their size; after others, the three of queries to values.
            for dim in (*reversed(varying[:-1]), varying[-1]):
                for attribute in _HEADS:
                    if vars(module).get(attribute) == moved.shape[dim]:
                        return dim, name, attribute
        return None

    def _padded(self, dims: Dims, pad: Sequence[int], count: int) -> Dims:
        result = {}
        for dim, labels in dims.items():
            position = 2 * (count - 1 - dim)
            before, after = (*pad[position : position + 2], 0, 0)[:2]
            if before < 0 or after < 0:
                self.labels.fix(labels, 'some of them are cut off')
                continue
            result[dim] = nn.functional.pad(labels, (before, after), value=FIXED)
        return result

    def _reduced(
        self, base: str, named: dict[str, Any], x: torch.Tensor, outputs: list[torch.Tensor]
    ) -> list[Dims]:
        gone = named.get('dim')
        gone = [gone] if isinstance(gone, int) else gone
        gone = {dim % x.dim() for dim in gone} if gone else set(range(x.dim()))
        left = self._without(self._dims(x), gone, base)
        if outputs[0].dim() == x.dim():
            return [left] * len(outputs)
        shifted = {dim - sum(one < dim for one in gone): v for dim, v in left.items()}
        return [shifted] * len(outputs)

    def _without(self, dims: Dims, gone: Sequence[int] | set[int] | range, base: str) -> Dims:
        """Labels of the dimensions that an operation leaves apart; it mixes those of others."""
        for dim in gone:
            if dim in dims:
                self.labels.fix(dims[dim], f'{base} mixes them')
        return {dim: labels for dim, labels in dims.items() if dim not in gone}

    def _product(self, base: str, tensors: list[torch.Tensor], output: torch.Tensor) -> Dims:
        left, right = tensors[-2:]
        if len(tensors) == 3:
            self._fix_all(tensors[:1], f'{base} adds them')
        rows = self._without(self._dims(left), (left.dim() - 1,), base)
        columns = self._without(self._dims(right), (max(0, right.dim() - 2),), base)
        result = {dim: v for dim, v in rows.items() if dim < output.dim()}
        for dim, labels in columns.items():
            at = dim - right.dim() + output.dim()
            if at == output.dim() - 1 or dim not in result:
                if at < output.dim() - 1 and left.shape[at] > 1:
                    self.labels.fix(labels, f'{base} with what has to stay')
                else:
                    result[at] = labels
            else:
                self.labels.join(result[dim], labels, f'{base} with what has to stay')
        for dim in [dim for dim in result if dim < output.dim() - 2 and dim not in columns]:
            self.labels.fix(result.pop(dim), f'{base} with what has to stay')
        return result

    def _attended(
        self, base: str, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> Dims:
        last = query.dim() - 1
        rows = self._without(self._dims(query), (last,), base)
        self._without(self._dims(key), (last - 1, last), base)
        values = self._without(self._dims(value), (last - 1,), base)
        # Heads, and whatever else goes beside each other.
        beside = self._meet((query, key, value), query.shape[: last - 1], base, ends=2)
        ends = {last - 1: rows.get(last - 1), last: values.get(last)}
        return beside | {dim: labels for dim, labels in ends.items() if labels is not None}
