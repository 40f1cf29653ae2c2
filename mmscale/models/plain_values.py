"""What the names in a checkpoint's pickle stand for: tensors and plain values, checked.

Each function takes what a file has as arguments, whatever that is, and makes a value or raises
``UnpicklingError``. :mod:`mmscale.models.unpickling` calls them.
"""

from __future__ import annotations

import math
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

# Python 2's names, and NumPy's before 2.0.
MODULES = {
    '__builtin__': 'builtins',
    'numpy.core.multiarray': 'numpy._core.multiarray',
    'torch.cuda': 'torch',
    'torch.storage': 'torch',
}
STORAGES = {
    'torch.BFloat16Storage': torch.bfloat16,
    'torch.BoolStorage': torch.bool,
    'torch.ByteStorage': torch.uint8,
    'torch.CharStorage': torch.int8,
    'torch.ComplexDoubleStorage': torch.complex128,
    'torch.ComplexFloatStorage': torch.complex64,
    'torch.DoubleStorage': torch.float64,
    'torch.FloatStorage': torch.float32,
    'torch.HalfStorage': torch.float16,
    'torch.IntStorage': torch.int32,
    'torch.LongStorage': torch.int64,
    'torch.ShortStorage': torch.int16,
    'torch.UntypedStorage': torch.uint8,
}
DTYPES = {
    str(dtype): dtype
    for dtype in (
        *STORAGES.values(),
        *(torch.uint16, torch.uint32, torch.uint64),
        *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
    )
}
BUFFER = 'mmengine.logging.history_buffer.HistoryBuffer'
_ARRAY = 'numpy.ndarray'
# What a HistoryBuffer's state says that it can compute: methods, which it has anyway.
_STATISTICS = ('current', 'max', 'mean', 'min')
_NUMBERS = re.compile(r'[biufc]\d{1,2}')
# Keys of dicts and members of sets.
PLAIN_KEYS = (bool, bytes, float, int, str, type(None))
# Of a tensor that repeats the numbers of a smaller storage.
_MOST_REPEATED = 2**20
# Of a tensor or an array, in torch and NumPy.
_MOST_AXES = 64


@dataclass(frozen=True)
class Name:
    """A global that a file names; only its text."""

    text: str


def checked(condition: bool, what: str) -> None:
    """Refuses a file where a condition is not met."""
    if not condition:
        raise UnpicklingError(what)


def check_keys(keys: Iterable[object]) -> None:
    """Checks the keys of a dict, or the members of a set."""
    for key in keys:
        # Flat tuples too; hashing deep ones would overflow the stack of C.
        parts = key if type(key) is tuple else (key,)
        if not all(type(part) in PLAIN_KEYS for part in parts):
            raise UnpicklingError(f'a key or member of a set is a {type(key).__name__}')


def is_size(value: object) -> bool:
    """Whether it is a tuple of numbers of elements."""
    return (
        type(value) in (tuple, torch.Size)
        and len(value) <= _MOST_AXES
        and all(type(n) is int and 0 <= n < 2**62 for n in value)
    )


# ---------------------------------------------------------------------- what is made of a name


def _encode(text: object, encoding: object) -> bytes:
    """Bytes as pickles of Python 3 for Python 2 have them."""
    checked(
        type(text) is str and encoding in ('latin1', 'latin-1'), 'bytes in an unknown encoding'
    )
    return text.encode('latin1')


def _empty_bytes() -> bytes:
    return b''


def _method(owner: object, name: object) -> Name:
    """``getattr``, of a HistoryBuffer's statistics alone, which stay names."""
    checked(
        owner == Name(BUFFER) and type(name) is str and name in _STATISTICS,
        'it names builtins.getattr of something else than the statistics of a HistoryBuffer',
    )
    return Name(f'{BUFFER}.{name}')


def _ordered_dict(pairs: object = ()) -> OrderedDict:
    is_list = type(pairs) in (list, tuple)
    checked(
        is_list and all(type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs),
        'an OrderedDict of no pairs',
    )
    check_keys(key for key, _ in pairs)
    return OrderedDict(pairs)


def _counter(counts: object = None) -> Counter:
    checked(counts is None or type(counts) is dict, 'a Counter of no dict')
    return Counter(counts)


def _set(members: object = ()) -> set:
    checked(type(members) in (list, tuple), 'a set of no list')
    check_keys(members)
    return set(members)


def _complex(real: object, imag: object) -> complex:
    checked(type(real) is float and type(imag) is float, 'a complex number of no floats')
    return complex(real, imag)


def _bytearray(content: object = b'', encoding: object = None) -> bytearray:
    content = content if encoding is None else _encode(content, encoding)
    checked(type(content) is bytes, 'a bytearray of no bytes')
    return bytearray(content)


def _torch_size(numbers: object) -> torch.Size:
    checked(is_size(numbers), 'a size of no numbers')
    return torch.Size(numbers)


def _device(*parts: object) -> torch.device:
    checked(all(type(part) in (str, int) for part in parts), 'a device of no name')
    return torch.device(*parts)


def _tensor(
    storage: object,
    offset: object,
    size: object,
    stride: object,
    requires_grad: object = False,
    hooks: object = None,
    metadata: object = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """A tensor on a storage, inside of it; hooks are functions, and are left out."""
    checked(isinstance(storage, torch.storage.TypedStorage), 'a tensor without a storage')
    checked(type(requires_grad) is bool and not metadata, 'a tensor of an unknown kind')
    checked(
        is_size(size) and is_size(stride) and len(size) == len(stride) and is_size((offset,)),
        'a tensor whose shape is none',
    )
    held = storage._untyped_storage.nbytes() // (dtype or storage.dtype).itemsize
    elements = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    is_inside = last < held if elements else offset <= held
    checked(is_inside, f'a tensor of {tuple(size)} is larger than its storage of {held}')
    checked(
        elements <= max(held, _MOST_REPEATED),
        f'a tensor of {tuple(size)} repeats a storage of {held}',
    )
    settings = (storage, offset, tuple(size), tuple(stride), requires_grad, OrderedDict())
    if dtype is None:
        return torch._utils._rebuild_tensor_v2(*settings)
    return torch._utils._rebuild_tensor_v3(*settings, dtype)


def _tensor_of_dtype(
    storage: object,
    offset: object,
    size: object,
    stride: object,
    requires_grad: object,
    hooks: object,
    dtype: object,
    metadata: object = None,
) -> torch.Tensor:
    checked(type(dtype) is torch.dtype, 'a tensor of no type')
    return _tensor(storage, offset, size, stride, requires_grad, hooks, metadata, dtype)


def _parameter(data: object, requires_grad: object, hooks: object) -> torch.nn.Parameter:
    checked(type(data) is torch.Tensor and type(requires_grad) is bool, 'a parameter of no tensor')
    return torch.nn.Parameter(data, requires_grad)


def _dtype(code: object, align: object = False, copy: object = True) -> np.dtype:
    """NumPy's type of a number; strings, objects and records are none."""
    checked(type(code) is str and bool(_NUMBERS.fullmatch(code)), 'an array not of numbers')
    return np.dtype(code).newbyteorder('<')


def _empty_array(kind: object, shape: object, code: object) -> np.ndarray:
    checked(kind == Name(_ARRAY) and shape == (0,) and code == b'b', 'an array of no array')
    return np.ndarray((0,), np.int8)


def _scalar(dtype: object, content: object) -> np.generic:
    checked(
        isinstance(dtype, np.dtype) and type(content) is bytes and len(content) == dtype.itemsize,
        'a number of no bytes',
    )
    return np.frombuffer(content, dtype)[0]


MAKERS: dict[str, Callable[..., Any]] = {
    '_codecs.encode': _encode,
    'builtins.bytes': _empty_bytes,
    'builtins.bytearray': _bytearray,
    'builtins.complex': _complex,
    'builtins.getattr': _method,
    'builtins.set': _set,
    'collections.Counter': _counter,
    'collections.OrderedDict': _ordered_dict,
    'numpy._core.multiarray._reconstruct': _empty_array,
    'numpy._core.multiarray.scalar': _scalar,
    'numpy.dtype': _dtype,
    'torch.Size': _torch_size,
    'torch._utils._rebuild_parameter': _parameter,
    'torch._utils._rebuild_tensor': _tensor,
    'torch._utils._rebuild_tensor_v2': _tensor,
    'torch._utils._rebuild_tensor_v3': _tensor_of_dtype,
    'torch.device': _device,
}
ALLOWED = frozenset(
    {*MAKERS, *STORAGES, *DTYPES, BUFFER, _ARRAY, *(f'{BUFFER}.{name}' for name in _STATISTICS)}
)


# ---------------------------------------------------------------------- states


def set_array(array: np.ndarray, state: object) -> None:
    """Gives an empty array its numbers."""
    checked(type(state) is tuple and len(state) == 5, 'an array without its numbers')
    _, shape, dtype, is_fortran, content = state
    checked(
        is_size(shape)
        and isinstance(dtype, np.dtype)
        and type(is_fortran) is bool
        and type(content) is bytes
        and len(content) == math.prod(shape) * dtype.itemsize,
        'an array without its numbers',
    )
    array.__setstate__((1, shape, dtype, is_fortran, content))


def set_buffer(buffer: HistoryBuffer, state: object) -> None:
    """Gives an empty buffer its history."""
    checked(type(state) is dict, 'a HistoryBuffer without its history')
    rest = dict(state)
    logs, counts = rest.pop('_log_history', None), rest.pop('_count_history', None)
    longest = rest.pop('max_length', None)
    # The buffer's own; a file cannot add to them.
    rest.pop('statistics_methods', None)
    checked(
        not rest
        and type(longest) is int
        and all(type(one) is np.ndarray and one.ndim == 1 for one in (logs, counts)),
        'a HistoryBuffer without its history',
    )
    buffer.max_length, buffer._log_history, buffer._count_history = longest, logs, counts


def set_versions(state_dict: OrderedDict, state: object) -> None:
    """``_metadata``, where modules keep the version of their weights."""
    checked(
        type(state) is dict and {*state} <= {'_metadata'}, 'an OrderedDict with other attributes'
    )
    vars(state_dict).update(state)


def check_dtype(state: object) -> None:
    """Checks that the state of a type of numbers says what the type is already."""
    checked(
        type(state) is tuple and len(state) >= 2 and state[1] in ('<', '|'),
        'an array of another order of bytes',
    )
