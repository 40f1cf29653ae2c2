"""A dataset wrapper that makes any pipeline a pure function of the sampler's draw."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from mmscale.datasets.samplers import Draw
from mmscale.registry import DATASETS

# Reseeded for every draw, because making a new generator costs three times as much.
_NUMPY_GENERATOR = np.random.MT19937(0)
_MAX_REFETCHES = 1000


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


@DATASETS.register_module()
class SeededDataset(Dataset):
    """Runs a dataset's pipeline at the resolution and with the random seed of each draw.

    Indexed with a :class:`~mmscale.datasets.Draw` of the
    :class:`~mmscale.datasets.ResolutionSampler`, it puts ``results['resolution']`` before the
    pipeline and seeds the global random generators around it: stock transforms, too, become a
    function of the draw, in any process. Indexed with an integer, it is the dataset itself.

    Args:
        dataset: A dataset with ``get_data_info`` and ``pipeline``, such as every subclass of
            MMEngine's ``BaseDataset``, or its config.

    Raises:
        TypeError: If the dataset has no ``get_data_info`` or ``pipeline``.
    """

    def __init__(self, dataset: Dataset | dict) -> None:
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        for name in ('get_data_info', 'pipeline'):
            if not hasattr(self.dataset, name):
                raise TypeError(
                    f'SeededDataset: dataset={type(self.dataset).__name__} has no `{name}`; '
                    "wrap a subclass of MMEngine's BaseDataset"
                )

    def __getitem__(self, draw: Draw | int) -> Any:
        """The item of a draw after the pipeline.

        Raises:
            RuntimeError: If the pipeline gives None for item after item.
        """
        if not isinstance(draw, Draw):
            return self.dataset[draw]
        index = draw.index
        with seeded_global_rngs(draw.seed):
            for _ in range(_MAX_REFETCHES):
                results = self.dataset.get_data_info(index)
                if draw.resolution is not None:
                    results['resolution'] = draw.resolution
                item = self.dataset.pipeline(results)
                if item is not None:
                    return item
                # As in BaseDataset: a transform refused this item, so another one stands in.
                index = np.random.randint(len(self.dataset))
        raise RuntimeError(
            f'SeededDataset: the pipeline gave None for {_MAX_REFETCHES} items, the first of '
            f'index={draw.index}'
        )

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def metainfo(self) -> dict:
        """Meta information of the wrapped dataset."""
        return self.dataset.metainfo

    @property
    def pipeline(self) -> Any:
        """Pipeline of the wrapped dataset."""
        return self.dataset.pipeline

    def full_init(self) -> None:
        """Load the wrapped dataset's annotations."""
        self.dataset.full_init()

    def get_data_info(self, idx: int) -> dict:
        """Item of the wrapped dataset before the pipeline."""
        return self.dataset.get_data_info(idx)
