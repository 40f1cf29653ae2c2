"""Text as windows of tokens: a file of tokens, or the source of Python's standard library."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from mmscale.arch.checks import choice, integer
from mmscale.errors import UsageError
from mmscale.registry import DATASETS

# Every so many files of the standard library one is for validation.
_VALIDATION_STEP = 20


class _Windows(Dataset):
    """Windows of a long sequence of tokens.

    Neighbours share one token, as the first one of a window is not predicted: every token but
    the very first is predicted once. What is left at the end is dropped. An item has ``inputs``,
    int64 of shape (length,).
    """

    metainfo: dict = {}

    def __init__(self, tokens: np.ndarray, length: int) -> None:
        integer('length', length, 2)
        if len(tokens) < length:
            raise UsageError(f'length={length!r}: the text has {len(tokens)} tokens')
        self.tokens = tokens
        self.length = length

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // (self.length - 1)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = index * (self.length - 1)
        window = self.tokens[start : start + self.length]
        return {'inputs': torch.from_numpy(window.astype(np.int64))}


@DATASETS.register_module()
class TokenFile(_Windows):
    """Windows of the tokens in a file.

    Args:
        file: A ``.npy`` file of integers of shape (tokens,), which is read as it is needed.
        length: Tokens of a window.

    Raises:
        ValueError: The file holds something else, or `length` is out of its range.
    """

    def __init__(self, file: str, length: int) -> None:
        tokens = np.load(file, mmap_mode='r', allow_pickle=False)
        if tokens.ndim != 1 or tokens.dtype.kind not in 'iu':
            raise UsageError(
                f'file={file}: {tokens.dtype} of shape {tokens.shape} are no tokens in a row'
            )
        super().__init__(tokens, length)


@DATASETS.register_module()
class StandardLibrary(_Windows):
    """Bytes of the source files of Python's standard library: text that every machine has.

    The files are the top modules in alphabetic order, every 20th of them for validation. They
    differ between versions of Python.

    Args:
        split: ``train`` or ``val``.
        length: Bytes of a window.

    Raises:
        ValueError: The split is unknown, or `length` is out of its range.
        FileNotFoundError: This Python has no source files.
    """

    def __init__(self, split: str, length: int) -> None:
        choice('split', split, ('train', 'val'))
        folder = Path(sysconfig.get_path('stdlib'))
        # Beside them there are files that building Python on a machine has made.
        files = sorted(f for f in folder.glob('*.py') if f.stem in sys.stdlib_module_names)
        if not files:
            raise FileNotFoundError(f'{folder} has no source files of the standard library')
        self.files = [
            file for i, file in enumerate(files) if (i % _VALIDATION_STEP == 0) == (split == 'val')
        ]
        text = b''.join(file.read_bytes() for file in self.files)
        super().__init__(np.frombuffer(text, dtype=np.uint8), length)
