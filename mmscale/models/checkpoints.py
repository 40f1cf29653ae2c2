"""Reads checkpoints as data, and says which keys fit a network: all, or an error that names them.

What others have written is never run: :func:`load_checkpoint` and, in a process of our tools,
everything that calls ``torch.load`` read by the one restricted function here.
"""

from __future__ import annotations

import os
import re
import struct
import sys
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch
from mmengine.runner import CheckpointLoader
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from mmscale.errors import UsageError
from mmscale.files import atomic_write
from mmscale.models import unpickling
from mmscale.untrusted import NO, UntrustedFileError, open_regular

# What torch raises on bytes that are no checkpoint, or no longer one.
_DAMAGES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    UnpicklingError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)

# Around the reason, torch advises to run the code in the file.
_ADVICE = re.compile(r'Weights only load failed.*?\n\n|\n\nCheck the documentation.*', re.DOTALL)

# At the end of a zip file: where its list of records is; the latter two where it is large.
_END = struct.Struct('<4s4H2LH')
_LOCATOR = struct.Struct('<4sLQL')
_END_64 = struct.Struct('<4sQ2H2L4Q')
# Of the list of a zip file's records, or of safetensors' tensors: of 100,000.
_MOST_LIST_BYTES = 2**24
# Of the pickle and other records beside the tensors.
_MOST_PICKLE_BYTES = 2**28
_TENSOR = re.compile(r'^[^/]*/data/[^/]*$')
_MOST_OLD_BYTES = 2**30
_LARGE_BYTES = 2**29
# Of weights that share their memory in the file, beyond its own size.
_MOST_REPEATED_BYTES = 2**29

_LOCK = threading.RLock()
_torch_load = torch.load
# What of a safetensors file's own words is read: an export has them in weights.pth too.
_WORDS = ('arch', 'name', 'mmscale')
# Where checkpoints of MMEngine, torchvision and timm have the weights; the average of them, which
# MMEngine's hook saves as the weights themselves, is taken where there is nothing else.
_STATES = ('state_dict', 'model', 'ema_state_dict', 'state_dict_ema', 'model_ema')
# What torch calls the module inside of its wrappers.
_WRAPPERS = {'_orig_mod', '_fsdp_wrapped_module', '_checkpoint_wrapped_module'}
# Of MMEngine's and torch's averages of weights, beside ``module.``.
_COUNTERS = {'steps', 'n_averaged'}


def _trusts_files() -> bool:
    """Whether the user lets files run code: torch's variable says so, and nothing else does."""
    return os.environ.get('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '').lower() in NO


@contextmanager
def _own_unpickler() -> Iterator[None]:
    """Lets torch read pickles by :mod:`mmscale.models.unpickling`, in the place of its own."""
    with _LOCK:
        before = torch.serialization._weights_only_unpickler
        torch.serialization._weights_only_unpickler = unpickling
        try:
            yield
        finally:
            torch.serialization._weights_only_unpickler = before


def _check_records(file: BinaryIO) -> bool:
    """Checks that a file's parts are as torch writes them, and no larger than the file.

    Returns:
        Whether it is a zip file, and not of torch's format before 1.6.

    Raises:
        ValueError: Records are compressed, lie upon each other, or are hidden; or it is too large
            for the old format, which is read as a whole.
    """
    start = file.tell()
    head = file.read(tarfile.BLOCKSIZE)
    size = file.seek(0, os.SEEK_END)
    file.seek(start)
    if not head.startswith(b'PK\x03\x04'):
        if size - start > _MOST_OLD_BYTES:
            raise ValueError(
                f'it is no zip file, and larger than the {_MOST_OLD_BYTES:,} bytes that one of '
                'torch before 1.6 may have: save it anew'
            )
        with suppress(tarfile.HeaderError):
            tarfile.TarInfo.frombuf(head, 'utf-8', 'surrogateescape')
            raise ValueError('it is a tar file')
        return False
    _check_directory(file, start, size)
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
    if len({record.filename for record in records}) < len(records):
        raise ValueError('its list of records is ambiguous')
    for record in records:
        if record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size:
            raise ValueError(f'{record.filename:.60} is compressed, as no checkpoint is')
        if record.file_size > _MOST_PICKLE_BYTES and not _TENSOR.search(record.filename):
            raise ValueError(f'{record.filename:.60} has {record.file_size:,} bytes')
    if sum(record.file_size for record in records) > size:
        raise ValueError('its records are larger than the file')
    order = sys.byteorder.encode()
    for record in records:
        if record.filename.endswith('/byteorder'):
            # Torch would turn all numbers round, in memory.
            file.seek(start)
            with zipfile.ZipFile(file) as archive:
                if record.file_size > len(order) or archive.read(record) != order:
                    raise ValueError(f'its numbers are not {sys.byteorder}-endian')
    file.seek(start)
    return True


def _check_directory(file: BinaryIO, start: int, size: int) -> None:
    """Checks that there is one list of records, at the end of a zip file, and no long one.

    Readers of zip files differ in what they take for the list where there could be several.

    Raises:
        ValueError: It is elsewhere, or too long.
    """
    place = size - _END.size
    file.seek(max(0, place))
    found = file.read(_END.size)
    signature, disk, first_disk, here, count, length, offset, comment = (
        _END.unpack(found) if len(found) == _END.size else (b'', *[0] * 7)
    )
    is_one = signature == b'PK\x05\x06' and (disk, first_disk, comment) == (0, 0, 0)
    locator = place - _LOCATOR.size
    file.seek(max(0, locator))
    signature, _, found_at, _ = _LOCATOR.unpack(file.read(_LOCATOR.size))
    if is_one and signature == b'PK\x06\x07':  # of a large file
        place = locator - _END_64.size
        file.seek(max(0, place))
        signature, _, _, _, _, _, here, count, length, offset = _END_64.unpack(
            file.read(_END_64.size)
        )
        is_one = signature == b'PK\x06\x06' and start + found_at == place
    if not is_one or here != count or start + offset + length != place:
        raise ValueError('its list of records is ambiguous')
    if length > _MOST_LIST_BYTES:
        raise ValueError(f'its list of records has {length:,} bytes')


def _read_safetensors(path: str | os.PathLike[str]) -> dict[str, Any]:
    with open_regular(path) as file:
        length = int.from_bytes(file.read(8), 'little')
    if length > _MOST_LIST_BYTES:
        raise ValueError(f'no safetensors file: its header has {length:,} bytes')
    try:
        with safe_open(path, framework='pt') as file:
            words = file.metadata() or {}
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f'no safetensors file: {error}') from None
    return {'state_dict': weights, **{key: words[key] for key in _WORDS if key in words}}


def write_safetensors(
    path: str | os.PathLike[str], weights: Mapping[str, torch.Tensor], words: Mapping[str, str]
) -> None:
    """Writes weights as a safetensors file, which cannot hold code.

    Args:
        path: The file.
        weights: The tensors; those that share memory are written once each.
        words: What else there is to say.

    Raises:
        OSError: The file cannot be written.
    """
    copies = {}
    seen = set()
    for key, tensor in weights.items():
        copies[key] = tensor.detach().cpu().contiguous()
        place = copies[key].untyped_storage().data_ptr()
        if place in seen:
            copies[key] = copies[key].clone()
        seen.add(place)
    with atomic_write(path) as file:
        file.write(save(copies, metadata={'format': 'pt', **words}))


def _load(
    f: Any,
    map_location: Any = None,
    pickle_module: Any = None,
    *,
    weights_only: bool | None = None,
    mmap: bool | None = None,
    **settings: Any,
) -> Any:
    """``torch.load`` for files that nobody vouches for.

    Whatever the caller asks for, tensors and plain values are read and nothing else is, from
    files that torch has written, or as safetensors (``*.safetensors``, to the CPU).

    Raises:
        UntrustedFileError: There is something else in the file, or it is damaged; one line.
    """
    is_path = isinstance(f, (str, os.PathLike))
    is_safetensors = is_path and Path(f).suffix == '.safetensors'
    if _trusts_files() and not is_safetensors:
        settings |= dict(pickle_module=pickle_module, weights_only=weights_only, mmap=mmap)
        return _torch_load(f, map_location, **settings)
    try:
        if is_safetensors:
            return _read_safetensors(f)
        with open_regular(f) if is_path else nullcontext(f) as file:
            mmap = _check_records(file) and is_path and (mmap or _is_hollow(file))
            with _own_unpickler():
                source = os.fspath(f) if mmap else file
                return _torch_load(source, map_location, weights_only=True, mmap=mmap, **settings)
    except _DAMAGES as error:
        raise _refusal(f if is_path else getattr(f, 'name', 'the stream'), error) from error


def _is_hollow(file: BinaryIO) -> bool:
    """Whether a file is much larger than what it takes on the disk.

    Such a one is mapped: it takes memory where it is used, after its shapes were compared. Others
    are not, as a process ends without a word when a file that it has mapped is written over.
    """
    status = os.fstat(file.fileno())
    return status.st_size > _LARGE_BYTES and 2 * 512 * status.st_blocks < status.st_size


def _refusal(name: object, error: Exception) -> UntrustedFileError:
    if isinstance(error, UntrustedFileError):
        return error
    reason = f'{type(error).__name__}: {" ".join(_ADVICE.sub("", str(error)).split())}'
    return UntrustedFileError(
        f'{name} is not a checkpoint of tensors and plain values, or it is damaged ({reason:.200})'
    )


def restrict_torch_load() -> None:
    """From now on whoever calls ``torch.load`` in this process gets tensors and plain values only.

    MMEngine, mmpretrain and mmdet read all weights by it, whatever names them. The variable
    ``TORCH_FORCE_WEIGHTS_ONLY_LOAD=0`` lifts the restriction, for users who trust their files.
    """
    torch.load = torch.serialization.load = _load


@contextmanager
def restricted_torch_load() -> Iterator[None]:
    """:func:`restrict_torch_load` for a block."""
    with _LOCK:
        before = torch.load, torch.serialization.load
        restrict_torch_load()
        try:
            yield
        finally:
            torch.load, torch.serialization.load = before


def load_checkpoint(path: str) -> dict[str, Any]:
    """Reads a checkpoint to the CPU, from a script as from our tools without running code in it.

    Torch looks at no checksum of the tensors; here those of a local file are compared.

    Args:
        path: The file, a checkpoint or safetensors, or an address as MMEngine understands it.

    Raises:
        FileNotFoundError: There is no such file.
        UntrustedFileError: It is damaged or not a checkpoint, or holds code; one line.
    """
    try:
        if Path(path).exists():
            _check_checksums(path)
        with restricted_torch_load():
            checkpoint = CheckpointLoader.load_checkpoint(
                path, map_location='cpu', logger='silent'
            )
    except FileNotFoundError:
        raise
    except (*_DAMAGES, OSError) as error:
        raise _refusal(path, error) from error
    if not isinstance(checkpoint, dict):
        raise UntrustedFileError(
            f'{path} is not a checkpoint: it holds a {type(checkpoint).__name__}'
        )
    return checkpoint


def _check_checksums(path: str) -> None:
    with open_regular(path) as file:
        if Path(path).suffix != '.safetensors' and _check_records(file):
            with zipfile.ZipFile(file) as records:
                damaged = records.testzip()
            if damaged is not None:
                raise ValueError(f'the checksum of {damaged} does not match')


def unwrapped_state(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights by the names that a network itself gives them, whatever was around it.

    Names that torch reserves for wrappers (``_orig_mod`` of ``torch.compile``, FSDP's, that of
    gradient checkpointing) go wherever they are. ``module.`` goes if all keys begin with it, a
    counter of averaged steps apart: a network may have a part of that name.

    Args:
        state: Weights by their names; it is left as it is.

    Example:
        >>> list(unwrapped_state({'module._orig_mod.fc.weight': torch.zeros(1)}))
        ['fc.weight']
    """
    found = {
        '.'.join(part for part in key.split('.') if part not in _WRAPPERS): tensor
        for key, tensor in state.items()
    }
    if len(found) < len(state):  # two of one name: these are no wrappers
        return dict(state)
    weights = {key: tensor for key, tensor in found.items() if key not in _COUNTERS}
    while weights and all(key.startswith('module.') for key in weights):
        weights = {key.removeprefix('module.'): tensor for key, tensor in weights.items()}
        found = weights
    return found


def state_of(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a checkpoint that holds the weights: the whole of it, where none is named."""
    found = (checkpoint[key] for key in _STATES if isinstance(checkpoint.get(key), Mapping))
    return next(found, checkpoint)


def weights_of(path: str | os.PathLike[str], checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The weights of a checkpoint, by the names that the network gives them.

    Args:
        path: The file, for messages.
        checkpoint: Its content, see :func:`load_checkpoint`.

    Raises:
        UsageError: There are no weights, or something else is among them.
    """
    state = state_of(checkpoint)
    if not state:
        raise UsageError(f'{path} holds no weights')
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise UsageError(f'{path}: {key!r:.80} is a {type(value).__name__}, not weights')
    storages = [value.untyped_storage() for value in state.values()]
    held = {storage.data_ptr(): storage for storage in storages}
    most = 2 * sum(storage.nbytes() for storage in held.values()) + _MOST_REPEATED_BYTES
    if sum(value.nbytes for value in state.values()) > most:
        raise UsageError(f'{path}: the weights repeat each other, more than those of a network do')
    return unwrapped_state(state)


def misfit(wanted: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> str:
    """Says in one line how two state dicts differ in keys and shapes; empty if they do not."""
    problems = {
        'missing': [key for key in wanted if key not in found],
        'not in the model': [key for key in found if key not in wanted],
        'of another shape': [
            f'{key} {tuple(found[key].shape)}, expected {tuple(wanted[key].shape)}'
            for key in wanted
            if key in found and found[key].shape != wanted[key].shape
        ],
    }
    return '; '.join(
        f'{len(keys)} {what}: {", ".join(keys[:3])}{", ..." if len(keys) > 3 else ""}'
        for what, keys in problems.items()
        if keys
    )


def _beginnings(keys: Iterable[str]) -> str:
    """The distinct first parts of keys, as ``backbone., head.``."""
    return ', '.join(sorted({f'{key.partition(".")[0]}.' for key in keys})[:5]) or 'nothing'


def read_part(
    path: str, prefix: str | None, wanted: Mapping[str, torch.Tensor], optional: str
) -> dict[str, torch.Tensor]:
    """Reads the part of a checkpoint that belongs to one network, all of it and nothing else.

    Args:
        path: The file, or an address as MMEngine understands it.
        prefix: What the part's keys begin with, as ``backbone.``; None if the file is that part.
        wanted: State dict of the network.
        optional: Keys of the network that begin so may all be missing.

    Raises:
        ValueError: No key matches, or some are missing, left over or of another shape; the
            message names some. Or the file is no checkpoint.
        FileNotFoundError: There is no such file.
    """
    try:
        checkpoint = load_checkpoint(path)
    except ValueError as error:
        raise UsageError(f'init_cfg: {error}') from error
    state = state_of(checkpoint)
    is_named = all(isinstance(key, str) for key in state)
    if not is_named or 'state_dict' in state:
        raise UsageError(f'init_cfg: {path} holds no weights by their names')
    state = unwrapped_state(state)
    prefix = f'{prefix.rstrip(".")}.' if prefix else ''
    found = {key: tensor for key, tensor in state.items() if key.startswith(prefix)}
    for key, tensor in found.items():
        if not isinstance(tensor, torch.Tensor):
            raise UsageError(f'init_cfg: {path}: {key} is a {type(tensor).__name__}, no weights')
    needed = {f'{prefix}{key}': tensor for key, tensor in wanted.items()}
    if not found.keys() & needed.keys():
        raise UsageError(
            f'init_cfg: with prefix={prefix or None!r} no key of {path} is one of the network, '
            f'whose first would be {next(iter(needed))}; the keys there begin with '
            f'{_beginnings(state)}'
        )
    if not any(key.startswith(f'{prefix}{optional}') for key in found):
        needed = {
            key: tensor
            for key, tensor in needed.items()
            if not key.startswith(f'{prefix}{optional}')
        }
    difference = misfit(needed, found)
    if difference:
        raise UsageError(f'init_cfg: {path} does not fit the network: {difference}')
    return {key.removeprefix(prefix): tensor for key, tensor in found.items()}
