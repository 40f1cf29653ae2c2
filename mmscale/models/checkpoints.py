"""Reads checkpoints, and says which keys fit a network: all, or an error that names them."""

from __future__ import annotations

import io
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from mmengine.runner import CheckpointLoader

from mmscale.errors import UsageError

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


@contextmanager
def _no_code() -> Iterator[None]:
    """Forbids torch to run what is in files: MMEngine would, after a warning.

    A user who trusts his files sets the variable to 0.
    """
    variable = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
    was_set = variable in os.environ
    os.environ.setdefault(variable, '1')
    try:
        # MMEngine prints that it goes on without safety, which the variable then prevents.
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        if not was_set:
            del os.environ[variable]


def load_checkpoint(path: str) -> dict[str, Any]:
    """Reads a checkpoint to the CPU, from a script as from our tools without running code in it.

    Torch looks at no checksum of the tensors; here those of a local file are compared.

    Args:
        path: The file, or an address as MMEngine understands it.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged or not a checkpoint, or holds code; one line.
    """
    try:
        if Path(path).is_file() and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as records:
                damaged = records.testzip()
            if damaged is not None:
                raise UsageError(f'the checksum of {damaged} does not match')
        with _no_code():
            checkpoint = CheckpointLoader.load_checkpoint(
                path, map_location='cpu', logger='silent'
            )
    except FileNotFoundError:
        raise
    except (*_DAMAGES, OSError) as error:
        reason = f'{type(error).__name__}: {" ".join(_ADVICE.sub("", str(error)).split())}'
        raise UsageError(
            f'{path} is not a checkpoint of tensors and plain values, or it is damaged '
            f'({reason:.200})'
        ) from error
    if not isinstance(checkpoint, dict):
        raise UsageError(f'{path} is not a checkpoint: it holds a {type(checkpoint).__name__}')
    return checkpoint


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
    state = checkpoint.get('state_dict', checkpoint)
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise UsageError(f'init_cfg: {path} holds no weights by their names')
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
