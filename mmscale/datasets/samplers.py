"""A data sampler that says with every index at which resolution and with which seed to load it."""

import hashlib
import operator
from collections.abc import Callable, Iterator, Sized
from typing import NamedTuple

import numpy as np
from mmengine.dist import get_dist_info, sync_random_seed
from torch.utils.data import Sampler

from mmscale.errors import UsageError
from mmscale.registry import DATA_SAMPLERS


class Draw(NamedTuple):
    """What the sampler yields, and :class:`~mmscale.datasets.SeededDataset` is indexed with.

    Attributes:
        index: Index into the dataset.
        resolution: Side of the network's input in pixels, or None to leave it to the pipeline.
        seed: 64-bit seed of the random augmentation of this draw.
    """

    index: int
    resolution: int | None
    seed: int


@DATA_SAMPLERS.register_module()
class ResolutionSampler(Sampler):
    """Infinite sampler whose draws are a pure function of (seed, position).

    Positions count the images that all ranks together consume: iteration ``k`` of ``n`` ranks
    with batches of ``b`` covers the positions ``k * n * b`` to ``(k + 1) * n * b - 1``, of which
    a rank takes every ``n``-th. So ``n`` ranks with batches of ``b / n`` see together just what
    one process with batches of ``b`` sees, and a run that resumes at iteration ``k`` goes on
    with the draws it would have seen.

    An iteration is one batch: under gradient accumulation, every batch counted by the train loop
    has a resolution of its own, unless the schedule gives several iterations the same.

    Args:
        dataset: The dataset to sample from.
        batch_size: Batch size of one rank. Usually left None here and set as an attribute, from
            the data loader, by the hook that also sets the schedule.
        seed: Seed of order and augmentation; drawn and shared by all ranks if None.
        shuffle: Whether each epoch is a permutation of its own.
        resolution_schedule: A resolution in pixels, or a pure function from iteration to
            resolution. It may be set as an attribute until iteration starts, and is called ahead
            of training when workers prefetch.

    Raises:
        ValueError: If the dataset is empty, or an argument is out of its range.
    """

    def __init__(
        self,
        dataset: Sized,
        batch_size: int | None = None,
        seed: int | None = None,
        shuffle: bool = True,
        resolution_schedule: Callable[[int], int] | int | None = None,
    ) -> None:
        self.rank, self.world_size = get_dist_info()
        self.size = len(dataset)
        if self.size == 0:
            raise UsageError('ResolutionSampler: the dataset is empty')
        self.batch_size = batch_size
        self.seed = sync_random_seed() if seed is None else seed
        if self.seed < 0:
            raise UsageError(f'ResolutionSampler: seed={seed} must not be negative')
        self.shuffle = shuffle
        self.resolution_schedule = resolution_schedule
        self._num_skipped = 0

    def __iter__(self) -> Iterator[Draw]:
        """Yield this rank's draws, from the first one not skipped, without end."""
        if self.batch_size is None or self.batch_size < 1:
            raise UsageError(
                f'ResolutionSampler: batch_size={self.batch_size} must be an integer >= 1, equal '
                "to the data loader's, before iteration starts"
            )
        position = self._num_skipped * self.world_size + self.rank
        images_per_iteration = self.batch_size * self.world_size
        iteration = epoch = -1
        while True:
            if iteration != position // images_per_iteration:
                iteration = position // images_per_iteration
                resolution = self._resolution_of(iteration)
            if epoch != position // self.size:
                epoch = position // self.size
                order = self._order_of(epoch)
            yield Draw(int(order[position % self.size]), resolution, self._seed_of(position))
            position += self.world_size

    def __len__(self) -> int:
        """Size of the dataset, as with MMEngine's ``InfiniteSampler``."""
        return self.size

    def skip(self, num_samples: int) -> None:
        """Let iteration start after this rank's first ``num_samples`` draws.

        This is how MMEngine's train loop resumes; the number counts from the very first draw,
        whatever was skipped or consumed before. It takes no time.

        Raises:
            ValueError: If the number is negative.
        """
        if num_samples < 0:
            raise UsageError(f'ResolutionSampler: cannot skip num_samples={num_samples} < 0')
        self._num_skipped = num_samples

    def _resolution_of(self, iteration: int) -> int | None:
        schedule = self.resolution_schedule
        if schedule is None:
            return None
        resolution = operator.index(schedule(iteration) if callable(schedule) else schedule)
        if resolution < 1:
            raise UsageError(
                f'ResolutionSampler: resolution={resolution} of iteration {iteration} must be >= 1'
            )
        return resolution

    def _order_of(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.size)
        sequence = np.random.SeedSequence(self.seed, spawn_key=(epoch,))
        return np.random.default_rng(sequence).permutation(self.size)

    def _seed_of(self, position: int) -> int:
        digest = hashlib.blake2b(f'{self.seed},{position}'.encode(), digest_size=8).digest()
        return int.from_bytes(digest, 'little')
