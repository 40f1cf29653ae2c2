"""Samplers that say with every index at which resolution and with which seed to load it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sized
from typing import Any

import numpy as np
from mmengine.dist import get_dist_info, sync_random_seed
from torch.utils.data import BatchSampler, Sampler

from mmscale.datasets.draws import Draw, accept_draws, seed_of, seeded_global_rngs
from mmscale.errors import UsageError
from mmscale.registry import DATA_SAMPLERS

Schedule = Callable[[int], int] | int | None


def _scheduled(schedule: Schedule, iteration: int) -> int | None:
    """The resolution of an iteration.

    Raises:
        ValueError: It is below 1.
        TypeError: It is no integer.
    """
    if schedule is None:
        return None
    resolution = operator.index(schedule(iteration) if callable(schedule) else schedule)
    if resolution < 1:
        raise UsageError(
            f'ResolutionSampler: resolution={resolution} of iteration {iteration} must be >= 1'
        )
    return resolution


@DATA_SAMPLERS.register_module()
class ResolutionSampler(Sampler):
    """Sampler whose draws are a pure function of (seed, position).

    It has no end, as loops over iterations want it; in a loop over epochs each of them is a
    permutation of the dataset, see :meth:`run_in_epochs`.

    Positions count the images that all ranks together consume: iteration ``k`` of ``n`` ranks
    with batches of ``b`` covers the positions ``k * n * b`` to ``(k + 1) * n * b - 1``, of which
    a rank takes every ``n``-th. So ``n`` ranks with batches of ``b / n`` see together just what
    one process with batches of ``b`` sees, and a run that resumes at iteration ``k`` goes on
    with the draws it would have seen.

    An iteration is one batch: under gradient accumulation, every batch counted by the train loop
    has a resolution of its own, unless the schedule gives several iterations the same.

    Args:
        dataset: The dataset to sample from, of any class: a data loader can then fetch draws from
            it, and the transforms of whatever lies inside it see their resolution and seed.
        batch_size: Batch size of one rank. Usually left None here and set as an attribute, from
            the data loader, by the hook that also sets the schedule.
        seed: Seed of order and augmentation; drawn and shared by all ranks if None.
        shuffle: Whether each epoch is a permutation of its own.
        resolution_schedule: A resolution in pixels, or a pure function from iteration to
            resolution. It may be set as an attribute until iteration starts, and is called ahead
            of training when workers prefetch.

    Attributes:
        yields_indices: Whether it yields the indices of the draws alone.

    Raises:
        ValueError: If the dataset is empty, or an argument is out of its range.
    """

    def __init__(
        self,
        dataset: Sized,
        batch_size: int | None = None,
        seed: int | None = None,
        shuffle: bool = True,
        resolution_schedule: Schedule = None,
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
        self.dataset = dataset
        accept_draws(dataset)
        self.yields_indices = False
        self._num_skipped = 0
        self._epoch = 0
        self._iterations_per_epoch: int | None = None

    def __iter__(self) -> Iterator[Draw | int]:
        """Yield this rank's draws, from the first one not skipped: without end, or of an epoch."""
        if self.batch_size is None or self.batch_size < 1:
            raise UsageError(
                f'ResolutionSampler: batch_size={self.batch_size} must be an integer >= 1, equal '
                "to the data loader's, before iteration starts"
            )
        draws = self._endless() if self._iterations_per_epoch is None else self._one_epoch()
        return (draw.index for draw in draws) if self.yields_indices else draws

    def _endless(self) -> Iterator[Draw]:
        position = self._num_skipped * self.world_size + self.rank
        images_per_iteration = self.batch_size * self.world_size
        iteration = epoch = -1
        while True:
            if iteration != position // images_per_iteration:
                iteration = position // images_per_iteration
                resolution = _scheduled(self.resolution_schedule, iteration)
            if epoch != position // self.size:
                epoch = position // self.size
                order = self._order_of(epoch)
            index = int(order[position % self.size])
            yield Draw(index, resolution, seed_of(self.seed, position))
            position += self.world_size

    def _one_epoch(self) -> Iterator[Draw]:
        order = self._order_of(self._epoch)
        first_iteration = self._epoch * self._iterations_per_epoch
        first_position = self._epoch * len(self) * self.world_size
        for i in range(self._num_skipped, len(self)):
            if i % self.batch_size == 0:
                iteration = first_iteration + i // self.batch_size
                resolution = _scheduled(self.resolution_schedule, iteration)
            place = i * self.world_size + self.rank
            # The last ranks begin anew where the dataset cannot be divided among all.
            index = int(order[place % self.size])
            yield Draw(index, resolution, seed_of(self.seed, first_position + place))

    def resolution_at(self, iteration: int) -> int | None:
        """The resolution of an iteration; None where images have that of their pipeline."""
        return _scheduled(self.resolution_schedule, iteration)

    def __len__(self) -> int:
        """Images of this rank in an epoch, rounded up."""
        return -(-self.size // self.world_size)

    def run_in_epochs(self, iterations: int) -> None:
        """Let every iteration over the sampler be one epoch, as loops over epochs need it.

        Args:
            iterations: Batches of an epoch.
        """
        self._iterations_per_epoch = iterations

    def begin_epoch(self, epoch: int, done: int = 0) -> None:
        """Choose the next epoch, and how many of its batches are done already."""
        self._epoch = epoch
        self._num_skipped = done * self.batch_size

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

    def _order_of(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.size)
        sequence = np.random.SeedSequence(self.seed, spawn_key=(epoch,))
        return np.random.default_rng(sequence).permutation(self.size)


class SeededBatches:
    """The batches of any sampler, of mmpretrain, mmdet or PyTorch, as draws.

    It takes the place of a data loader's batch sampler. Resolution and seeds are a pure function
    of (seed, iteration, place in the batch), and what the sampler itself draws from the global
    generators is one of (seed, iteration).

    Args:
        batches: The batch sampler, whose iteration gives lists of indices.
        seed: Seed of order and augmentation.

    Attributes:
        sampler: What the batch sampler samples from.
        batch_size: That of the batch sampler.
        drop_last: That of the batch sampler.
        iteration: Of the training, of the batch that comes next.
        resolution_schedule: As of :class:`ResolutionSampler`.
    """

    def __init__(self, batches: Any, seed: int) -> None:
        self.rank, _ = get_dist_info()
        self._batches = batches
        self._seed = seed
        self.sampler = getattr(batches, 'sampler', None)
        self.batch_size = getattr(batches, 'batch_size', None)
        self.drop_last = getattr(batches, 'drop_last', False)
        self.iteration = 0
        self.resolution_schedule: Schedule = None
        self._iterations_per_epoch: int | None = None
        self._first_wanted = 0
        self._end: int | None = None
        self._stream: Iterator[list[int]] | None = None

    def __iter__(self) -> Iterator[list[Draw]]:
        """Yields batches until the sampler has no more or, in epochs, one epoch."""
        if self._end is None:
            self._stream = None
        while self._end is None or self.iteration < self._end:
            indices = self._next_indices()
            if indices is None and self._end is not None:
                # An epoch before had taken the last ones.
                indices = self._next_indices()
            if indices is None:
                return
            self.iteration += 1
            if self.iteration > self._first_wanted:
                yield self._draws(indices, self.iteration - 1)

    def _next_indices(self) -> list[int] | None:
        # What a sampler without end has begun must live on: its iterator dies with ours otherwise.
        self._stream = self._stream or iter(self._batches)
        with seeded_global_rngs(seed_of(self._seed, self.iteration)):
            indices = next(self._stream, None)
        if indices is None:
            self._stream = None
        return indices

    def _draws(self, indices: list[int], iteration: int) -> list[Draw]:
        resolution = _scheduled(self.resolution_schedule, iteration)
        return [
            Draw(int(index), resolution, seed_of(self._seed, iteration, self.rank, place))
            for place, index in enumerate(indices)
        ]

    def resolution_at(self, iteration: int) -> int | None:
        """The resolution of an iteration; None where images have that of their pipeline."""
        return _scheduled(self.resolution_schedule, iteration)

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self._batches)

    def run_in_epochs(self, iterations: int) -> None:
        """Let every iteration over the batches be one epoch, even if the sampler has no end."""
        self._iterations_per_epoch = iterations

    def begin_epoch(self, epoch: int, done: int = 0) -> None:
        """Choose the next epoch, and how many of its batches are done already."""
        first = epoch * self._iterations_per_epoch
        is_resumed = self._end is None and first + done > 0
        self._first_wanted = first + done
        self._end = first + self._iterations_per_epoch
        if hasattr(self.sampler, 'epoch'):
            self.sampler.set_epoch(epoch)
            self._stream = None
            self.iteration = first
        elif is_resumed and hasattr(self.sampler, 'skip') and type(self._batches) is BatchSampler:
            # A sampler without end goes on where it was.
            self.sampler.skip(self._first_wanted * self.batch_size)
            self.iteration = self._first_wanted
