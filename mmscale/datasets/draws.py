"""What is drawn for an image, its resolution and its seed, reaches whatever loads it from here.

A draw is set around the whole item, whichever datasets and wrappers make it: none of them has to
hand anything on.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from mmscale.datasets.reading import load_item

# Reseeded for every draw, because making a new generator costs three times as much.
_NUMPY_GENERATOR = np.random.MT19937(0)
_resolution: ContextVar[int | None] = ContextVar('resolution', default=None)


class Draw(NamedTuple):
    """What a sampler yields in the place of an index.

    Attributes:
        index: Index into the dataset.
        resolution: Side of the network's input in pixels, or None to leave it to the pipeline.
        seed: 64-bit seed of the random augmentation of this draw.
    """

    index: int
    resolution: int | None
    seed: int


def seed_of(*numbers: int) -> int:
    """A 64-bit seed that is a pure function of some integers."""
    text = ','.join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), 'little')


@contextmanager
def seeded_global_rngs(seed: int) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and PyTorch (CPU); restore them afterwards.

    It costs about 35 us: reading and writing NumPy's global state would cost twice that, so a
    generator of our own takes its place meanwhile. What is not restored is the spare deviate
    that an odd number of earlier ``np.random.normal`` calls leaves behind.

    Args:
        seed: An integer in [0, 2^64).
    """
    python_state = random.getstate()
    numpy_generator = np.random.get_bit_generator()
    torch_state = torch.default_generator.get_state()
    try:
        np.random.set_bit_generator(_NUMPY_GENERATOR)
        # Python and NumPy share one algorithm: the third word keeps their streams apart.
        np.random.seed((seed & 0xFFFFFFFF, seed >> 32, 1))
        random.seed(seed)
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(python_state)
        np.random.set_bit_generator(numpy_generator)
        torch.default_generator.set_state(torch_state)


def drawn_resolution() -> int | None:
    """The resolution of the draw whose image is being loaded, if there is one."""
    return _resolution.get()


def item_of(dataset: Any, draw: Draw) -> Any:
    """Loads the item of a draw from any dataset, at its resolution and with its seed.

    Raises:
        UsageError: The item cannot be loaded; the file is named.
    """
    token = _resolution.set(draw.resolution)
    try:
        with seeded_global_rngs(draw.seed):
            return load_item(dataset, draw.index)
    finally:
        _resolution.reset(token)


def _items_of(dataset: Any, indices: Sequence[Draw | int]) -> list:
    return [item_of(dataset, i) if isinstance(i, Draw) else load_item(dataset, i) for i in indices]


def accept_draws(dataset: Any) -> None:
    """Lets a data loader fetch the items of draws from a dataset of any class.

    Of indices too: an item that cannot be loaded is an error that names its file.

    ``__getitems__`` is what PyTorch's loaders call with all indices of a batch, where there is
    one; that of a dataset which has its own is not called any more.
    """
    # What has no attributes, such as a list, is indexed with integers alone.
    if hasattr(dataset, '__dict__'):
        dataset.__getitems__ = partial(_items_of, dataset)
