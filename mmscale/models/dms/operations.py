"""What operations do to the labels of the dimensions of tensors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from mmscale.models.dms.labels import FIXED, Labels

# Labels of a tensor by its dimensions, those that have some.
Dims = dict[int, torch.Tensor]

# Element by element, without torch's own tag of such operations.
_POINTWISE = {
    *(
        'clone',
        '_to_copy',
        'detach',
        'alias',
        'lift_fresh',
        'copy',
        'contiguous',
        'native_dropout',
    ),
    *(
        'gelu',
        'silu',
        'mish',
        'elu',
        'leaky_relu',
        'hardtanh',
        'hardswish',
        'hardsigmoid',
        'relu6',
    ),
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
    **{
        f'{kind}_pool{n}d': n
        for kind in ('avg', 'adaptive_avg', '_adaptive_avg')
        for n in (1, 2, 3)
    },
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


class Tensors:
    """Labels of the tensors of a forward pass.

    Args:
        labels: What is known of labels.
        of_parameter: Gives the labels of a tensor that no operation has made.

    Attributes:
        running: Names of the modules that run, the innermost last, with the modules.
        heads: Labels of heads of attention, and the module and the attribute that count them.
    """

    def __init__(self, labels: Labels, of_parameter: Callable[[torch.Tensor], Dims]) -> None:
        self.labels = labels
        self.running: list[tuple[str, nn.Module]] = []
        self.heads: list[tuple[torch.Tensor, str, str]] = []
        self._of_parameter = of_parameter
        self._of: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def dims(self, tensor: torch.Tensor) -> Dims:
        """Labels of a tensor; those of a parameter are made when it is first used."""
        if tensor not in self._of:
            self._of[tensor] = self._of_parameter(tensor)
        return self._of[tensor]

    def set(self, tensor: torch.Tensor, dims: Dims) -> None:
        """Notes labels of a tensor."""
        # A dimension of one index has nothing that could go.
        self._of[tensor] = {dim: v for dim, v in dims.items() if tensor.shape[dim] > 1}

    def entering(self, dims: Dims, dim: int, size: int) -> torch.Tensor:
        """Labels along a dimension, FIXED where there are none."""
        return dims[dim] if dim in dims else torch.full((size,), FIXED)

    def fix_dims(self, dims: Dims, reason: str) -> None:
        """Has the labels of some dimensions stay."""
        for labels in dims.values():
            self.labels.fix(labels, reason)

    def fix_all(self, values: Sequence[torch.Tensor], reason: str) -> None:
        """Has all labels of some tensors stay."""
        for value in values:
            self.fix_dims(self.dims(value), reason)

    def join_rows(self, labels: torch.Tensor, parts: int, within: bool, reason: str) -> None:
        """Joins labels inside each of equal parts, or else those of the same slots of them."""
        rows = labels.view(parts, -1)
        rows = rows.T if within else rows
        self.labels.join(
            rows[:1].expand_as(rows).flatten(), rows.flatten(), f'{reason} works on parts of them'
        )

    def operation(
        self,
        function: Any,
        name: str,
        named: dict[str, Any],
        tensors: list[torch.Tensor],
        outputs: list[torch.Tensor],
    ) -> list[Dims] | None:
        """Labels of what an operation gives; None if it is not followed."""
        base = name.removesuffix('_')
        if base.startswith('new_'):
            return [{}] * len(outputs)  # of what they are given they ask for the kind alone
        if torch.Tag.pointwise in function.tags or base in _POINTWISE or base.endswith('_like'):
            return [self._meet(tensors, output.shape, base) for output in outputs]
        x = tensors[0]
        dims = self.dims(x)
        if base in ('cat', 'concat'):
            return [
                self._concatenated(tensors, named.get('dim', 0) % outputs[0].dim(), outputs[0])
            ]
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
            return [self._attended(base, tensors)]
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
        """Labels of what an operation gives that broadcasts what it maps.

        Args:
            tensors: What it maps.
            shape: Of what it gives, without the last dimensions that are left out.
            reason: Its name.
            ends: How many last dimensions of what it maps are left out.
        """
        result: Dims = {}
        for dim, size in enumerate(shape):
            if size == 1:
                continue
            met = []
            for tensor in tensors:
                own = dim - len(shape) + tensor.dim() - ends
                if own >= 0 and tensor.shape[own] == size:
                    met.append(self.entering(self.dims(tensor), own, size))
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
            rows = [self.entering(self.dims(part), dim, part.shape[dim]) for part in parts]
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
        for dim, labels in self.dims(x).items():
            if base == 'channel_shuffle' or base == 'native_channel_shuffle':
                self.join_rows(labels, named['groups'], within=False, reason=base)
            if base == 'pixel_shuffle':
                factor = named['upscale_factor'] ** 2
                self.join_rows(labels, x.shape[dim] // factor, within=True, reason=base)
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
                        self.join_rows(labels, len(labels) // len(along), False, base)
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
        """Which of several dimensions is of heads, and what counts them: module and attribute."""
        if len(varying) > 1 and self.running:
            name, module = self.running[-1]
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
        left = self._without(self.dims(x), gone, base)
        if outputs[0].dim() == x.dim():
            return [left] * len(outputs)
        shifted = {dim - sum(one < dim for one in gone): v for dim, v in left.items()}
        return [shifted] * len(outputs)

    def _without(self, dims: Dims, gone: Collection[int], base: str) -> Dims:
        """Labels of the dimensions that an operation leaves apart; it mixes those of others."""
        for dim in gone:
            if dim in dims:
                self.labels.fix(dims[dim], f'{base} mixes them')
        return {dim: labels for dim, labels in dims.items() if dim not in gone}

    def _product(self, base: str, tensors: list[torch.Tensor], output: torch.Tensor) -> Dims:
        left, right = tensors[-2:]
        if len(tensors) == 3:
            self.fix_all(tensors[:1], f'{base} adds them')
        rows = self._without(self.dims(left), (left.dim() - 1,), base)
        columns = self._without(self.dims(right), (max(0, right.dim() - 2),), base)
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

    def _attended(self, base: str, tensors: Sequence[torch.Tensor]) -> Dims:
        query, key, value = tensors[:3]
        last = query.dim() - 1
        rows = self._without(self.dims(query), (last,), base)
        self._without(self.dims(key), (last - 1, last), base)
        values = self._without(self.dims(value), (last - 1,), base)
        # Heads, and whatever else goes beside each other.
        beside = self._meet(tensors, query.shape[: last - 1], base, ends=2)
        ends = {last - 1: rows.get(last - 1), last: values.get(last)}
        return beside | {dim: labels for dim, labels in ends.items() if labels is not None}
