"""What the operations of a step read, write and compute, counted as they run."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
FIELDS = ('bytes_read', 'bytes_written', 'multiply_adds', 'least_seconds')
# Move no data, or overwrite what they are given without reading it.
ALLOCATING = (aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty)
OVERWRITING = (aten.copy_, aten.fill_, aten.zero_, aten._foreach_copy_, aten._foreach_zero_)


def bytes_of(values: Any) -> int:
    """Bytes of the tensors in nested lists and tuples."""
    if torch.is_tensor(values):
        return values.nbytes
    return sum(map(bytes_of, values)) if isinstance(values, (list, tuple)) else 0


def multiply_adds(operation: Any, args: tuple, result: Any) -> int:
    """Of convolutions and matrix products; all else is counted as free."""
    kind = operation.overloadpacket
    if kind is aten.convolution:
        return result.numel() * args[1][0].numel()
    if kind is aten.convolution_backward:
        return args[0].numel() * args[2][0].numel() * sum(args[-1][:2])
    if kind in (aten.mm, aten.addmm):
        left, right = args[-2:]
        return left.numel() * right.shape[1]
    return 0


def kind_of(operation: Any, args: tuple) -> str:
    """Name of an operation; depthwise convolutions are a kind of their own."""
    packet = operation.overloadpacket
    name = packet.__name__
    weights = {aten.convolution: 1, aten.convolution_backward: 2}
    is_depthwise = packet in weights and args[weights[packet]].shape[1] == 1
    return f'{name}, depthwise' if is_depthwise else name


class Traffic(TorchDispatchMode):
    """Counts while it is entered.

    A tensor that an operation reads or writes counts once, whatever its kernel does inside; views
    count nothing.

    Args:
        least_seconds: Of an operation, given its bytes and its multiply-adds; see ceilings.py.

    Attributes:
        totals: What has been counted of :data:`FIELDS`.
        kinds: By kind of operation the seconds that a CPU took for it, and the least seconds.
    """

    def __init__(self, least_seconds: Callable[[int, int], float] = lambda *_: 0.0) -> None:
        super().__init__()
        self._least_seconds = least_seconds
        self.totals = np.zeros(len(FIELDS))
        self.kinds: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2))

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        start = time.process_time()
        result = operation(*args, **kwargs)
        seconds = time.process_time() - start
        if operation.is_view or operation.overloadpacket in ALLOCATING:
            return result
        written = sum(map(bytes_of, _written(operation, args, kwargs, result)))
        overwrites = operation.overloadpacket in OVERWRITING
        read = bytes_of(args[1:] if overwrites else args) + bytes_of(list(kwargs.values()))
        products = multiply_adds(operation, args, result)
        least = self._least_seconds(read + written, products)
        self.totals += read, written, products, least
        self.kinds[kind_of(operation, args)] += seconds, least
        return result


def _written(operation: Any, args: tuple, kwargs: dict, result: Any) -> Iterator[Any]:
    """The arguments that an operation writes to, and its new tensors."""
    schema = operation._schema
    for position, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            is_given = position < len(args)
            yield args[position] if is_given else kwargs.get(argument.name)
    results = result if len(schema.returns) > 1 else [result]
    for value, returned in zip(results, schema.returns, strict=False):
        if returned.alias_info is None:
            yield value
