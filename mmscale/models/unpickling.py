"""Reads the pickles inside checkpoints as data: nothing that a file names is imported or called.

``pickle`` looks up whatever name a file has and calls it. Torch's unpickler for weights allows
names of a list, and calls what they are; MMEngine adds ``getattr`` to that list, from which every
function of Python is within reach. Here a name is only a name: the few that checkpoints need each
have a function of :mod:`mmscale.models.plain_values`, which checks its arguments.

The module has the interface that torch wants of a ``pickle_module``: :class:`Unpickler` and
:func:`load`.
"""

from __future__ import annotations

import pickle
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from functools import wraps
from io import SEEK_END
from pickle import UnpicklingError
from typing import Any, BinaryIO

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from mmscale.models.plain_values import (
    ALLOWED,
    BUFFER,
    DTYPES,
    MAKERS,
    MODULES,
    PLAIN_KEYS,
    STORAGES,
    Name,
    check_dtype,
    check_keys,
    checked,
    is_size,
    set_array,
    set_buffer,
    set_versions,
)

_LEAVES = (
    *(*PLAIN_KEYS, complex, bytearray, np.ndarray, HistoryBuffer),
    *(torch.Tensor, torch.nn.Parameter, torch.dtype, torch.device),
    # What torch reads alone where a tensor is pickled by itself, as between processes.
    *(torch.storage.TypedStorage, torch.UntypedStorage),
)
_CONTAINERS = (Counter, OrderedDict, dict, list, set, torch.Size, tuple)
# Values of a checkpoint, those in several places counted in each.
_MOST_VALUES = 2**22
# Bytes of what a pickle makes, tensors apart: 100,000 of them by their names take half of it.
_MOST_BYTES = 2**29
# Of one text in it: a HistoryBuffer of MMEngine's, with a million numbers, takes half of it.
_MOST_TEXT_BYTES = 2**25
# Of a module's name or one in it.
_MOST_NAME_BYTES = 2**10


class _Opcodes(dict):
    """Functions by opcode, and an error for any other."""

    def __missing__(self, opcode: int) -> None:
        raise UnpicklingError(f'its pickle has the opcode {bytes([opcode])!r}')


_TEXTS = (
    *(pickle.BINSTRING, pickle.BINUNICODE, pickle.BINUNICODE8, pickle.BINBYTES),
    *(pickle.BINBYTES8, pickle.SHORT_BINSTRING, pickle.SHORT_BINUNICODE, pickle.SHORT_BINBYTES),
)
# As pickle has them: they make plain values and look nothing up.
_PLAIN = (
    *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.NONE),
    *(pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT, pickle.BININT1, pickle.BININT2),
    *(pickle.LONG1, pickle.BINFLOAT, *_TEXTS),
    *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
    *(pickle.EMPTY_LIST, pickle.EMPTY_DICT, pickle.EMPTY_SET),
    *(pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE, pickle.BINGET, pickle.LONG_BINGET),
)
# Bytes of memory that an opcode takes at most, beside those of texts, which are counted. One byte
# of a file may stand for a set or for an entry of the memo; containers are looked at at the end.
_PRICES = {
    **dict.fromkeys((pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE), 130),
    **dict.fromkeys((pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3), 280),
    **dict.fromkeys((pickle.EMPTY_LIST, pickle.EMPTY_DICT), 300),
    **dict.fromkeys((pickle.BINPERSID, pickle.REDUCE), 1100),
    **{pickle.MARK: 100, pickle.EMPTY_SET: 450, pickle.NEWOBJ: 1500},
}
_PRICE = 64
# Of an element of a container that is copied.
_ELEMENT_PRICE = 200


def _priced(code: int, function: Callable[[Unpickler], None]) -> Callable[[Unpickler], None]:
    """A function of an opcode that says what it takes."""
    price = _PRICES.get(bytes([code]), _PRICE)
    is_text = bytes([code]) in _TEXTS

    @wraps(function)
    def priced(machine: Unpickler) -> None:
        machine.spend(price)
        function(machine)
        if is_text:
            machine.spend(sys.getsizeof(machine.stack[-1]))

    return priced


class Unpickler(pickle._Unpickler):
    """Pickle's own machine, with those opcodes replaced that look up, call or change objects.

    Torch sets :attr:`persistent_load`, which reads storages.

    Args:
        file: The file, or a part of it in memory.
        encoding: Of the strings of Python 2.
        most_bytes: What all that it makes may take of memory, tensors apart.

    Raises:
        UnpicklingError: The pickle has something else than tensors and plain values, or too much.
    """

    dispatch = _Opcodes({code[0]: pickle._Unpickler.dispatch[code[0]] for code in _PLAIN})

    def __init__(
        self, file: BinaryIO, *, encoding: str = 'ASCII', most_bytes: int = _MOST_BYTES
    ) -> None:
        super().__init__(file, encoding=encoding)
        place = file.tell()
        self._size = file.seek(0, SEEK_END)
        file.seek(place)
        self._file_read = self._bounded(file.read)
        self._file_readline = lambda: file.readline(_MOST_NAME_BYTES)
        self._keys: set[str] = set()
        self._claimed = 0
        self._most_bytes = most_bytes
        self._left = most_bytes

    def spend(self, count: int) -> None:
        """Takes note of bytes of memory that are about to be needed."""
        self._left -= count
        if self._left < 0:
            raise UnpicklingError(
                f'its values take more than the {self._most_bytes:,} bytes that they may'
            )

    def _bounded(self, read: Callable[[int], bytes]) -> Callable[[int], bytes]:
        """Reads no more than there is, which Python would make room for first."""

        def bounded(count: int) -> bytes:
            checked(count <= self._size, 'it ends before what it announces')
            checked(count <= _MOST_TEXT_BYTES, f'it has a value of {count:,} bytes')
            return read(count)

        return bounded

    def load(self) -> Any:
        """The content of the pickle."""
        value = super().load()
        self.memo.clear()
        _check_tree(value)
        return value

    def _name(self, module: object, name: object) -> None:
        text = f'{MODULES.get(module, module)}.{name}'
        checked(
            text in ALLOWED, f'it names {text:.100}, which is neither a tensor nor a plain value'
        )
        self.append(DTYPES.get(text, Name(text)))

    def load_global(self) -> None:
        """Takes a name, as text."""
        module, name = (self.readline()[:-1].decode() for _ in range(2))
        self._name(module, name)

    def load_stack_global(self) -> None:
        """Takes a name whose parts are on the stack."""
        name, module = self.stack.pop(), self.stack.pop()
        checked(type(name) is str and type(module) is str, 'a name is no text')
        self._name(module, name)

    def load_reduce(self) -> None:
        """Makes the value of a name with arguments."""
        arguments = self.stack.pop()
        name = self.stack[-1]
        checked(
            isinstance(name, Name) and name.text in MAKERS and type(arguments) is tuple,
            f'it calls {getattr(name, "text", type(name).__name__)}',
        )
        for one in arguments:
            if isinstance(one, (str, bytes)):
                self.spend(len(one))
            elif isinstance(one, _CONTAINERS):
                self.spend(len(one) * _ELEMENT_PRICE)
        self.stack[-1] = MAKERS[name.text](*arguments)

    def load_newobj(self) -> None:
        """Makes an empty HistoryBuffer: other values come with their content."""
        arguments, name = self.stack.pop(), self.stack.pop()
        checked(
            name == Name(BUFFER) and arguments == (),
            f'it makes an object of {getattr(name, "text", type(name).__name__)}',
        )
        self.append(HistoryBuffer())

    def load_build(self) -> None:
        """Gives a value its state."""
        state = self.stack.pop()
        value = self.stack[-1]
        if isinstance(value, np.dtype):
            check_dtype(state)
        elif type(value) is np.ndarray:
            set_array(value, state)
            self.spend(value.nbytes)
        elif type(value) is HistoryBuffer:
            set_buffer(value, state)
        elif type(value) is OrderedDict:
            set_versions(value, state)
        else:
            raise UnpicklingError(f'it changes a {type(value).__name__}')

    def load_append(self) -> None:
        """Appends a value to a list."""
        value = self.stack.pop()
        self._extend([value])

    def load_appends(self) -> None:
        """Appends values to a list."""
        self._extend(self.pop_mark())

    def _extend(self, values: list) -> None:
        checked(type(self.stack[-1]) is list, 'it appends to no list')
        self.stack[-1].extend(values)

    def load_additems(self) -> None:
        """Adds members to a set."""
        members = self.pop_mark()
        checked(type(self.stack[-1]) is set, 'it adds to no set')
        check_keys(members)
        self.stack[-1].update(members)

    def load_setitem(self) -> None:
        """Sets one item of a dict."""
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def load_setitems(self) -> None:
        """Sets items of a dict."""
        self._set_items(self.pop_mark())

    def _set_items(self, items: list) -> None:
        target = self.stack[-1]
        checked(type(target) in (dict, OrderedDict, Counter), 'it sets an item of no dict')
        check_keys(items[::2])
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[key] = value

    def load_binpersid(self) -> None:
        """Takes a storage, as torch reads it."""
        place = self.stack.pop()
        checked(type(place) is tuple and len(place) in (5, 6), 'a storage that is none')
        what, name, key, location, elements, *view = place
        checked(
            what in ('storage', b'storage')
            and isinstance(name, Name)
            and name.text in STORAGES
            and type(key) is str
            and type(location) in (str, bytes)
            and is_size((elements,))
            and view in ([], [None]),
            'a storage that is none',
        )
        if view:
            # Of the format before torch 1.6 torch makes room before it reads.
            if key not in self._keys:
                self._keys.add(key)
                self._claimed += elements * STORAGES[name.text].itemsize
            checked(self._claimed <= self._size, 'it ends before its tensors')
        kind = name.text.removeprefix('torch.')
        is_untyped = kind == 'UntypedStorage'
        storage_type = (
            torch.UntypedStorage if is_untyped else torch.serialization.StorageType(kind)
        )
        self.append(self.persistent_load((what, storage_type, key, location, elements, *view)))

    dispatch.update(
        {
            pickle.ADDITEMS[0]: load_additems,
            pickle.APPEND[0]: load_append,
            pickle.APPENDS[0]: load_appends,
            pickle.BINPERSID[0]: load_binpersid,
            pickle.BUILD[0]: load_build,
            pickle.GLOBAL[0]: load_global,
            pickle.NEWOBJ[0]: load_newobj,
            pickle.REDUCE[0]: load_reduce,
            pickle.SETITEM[0]: load_setitem,
            pickle.SETITEMS[0]: load_setitems,
            pickle.STACK_GLOBAL[0]: load_stack_global,
        }
    )
    dispatch = _Opcodes({code: _priced(code, one) for code, one in dispatch.items()})


def load(file: BinaryIO, *, encoding: str = 'ASCII') -> Any:
    """Reads a pickle that has no weights, of which a file before torch 1.6 has several."""
    return Unpickler(file, encoding=encoding, most_bytes=_MOST_BYTES // 4).load()


# ---------------------------------------------------------------------- what came out


def _children(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        yield from value.values()
        if '_metadata' in getattr(value, '__dict__', ()):
            yield value._metadata
    else:
        yield from value


def _check_tree(value: object) -> None:
    """Checks that a value is a tree of data, not too large to be walked through.

    Values that lie in several places are stored once, so that few bytes could stand for more
    values than a computer can visit.
    """
    sizes: dict[int, int] = {}  # of containers, by id
    entered: set[int] = set()
    stack = [value]
    while stack:
        one = stack[-1]
        if type(one) in _LEAVES or isinstance(one, np.generic) or id(one) in sizes:
            stack.pop()
            continue
        checked(
            type(one) in _CONTAINERS,
            f'it holds {getattr(one, "text", f"a {type(one).__name__}")}, which is no data',
        )
        inner = [child for child in _children(one) if type(child) not in _LEAVES]
        if id(one) not in entered:
            entered.add(id(one))
            checked(
                all(id(child) in sizes or id(child) not in entered for child in inner),
                'it holds itself',
            )
            stack += inner
            continue
        sizes[id(one)] = 1 + len(one) + sum(sizes.get(id(child), 1) for child in inner)
        checked(sizes[id(one)] <= _MOST_VALUES, f'it has more than {_MOST_VALUES:,} values')
        stack.pop()
