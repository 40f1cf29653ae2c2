"""What a train data loader has to know of the run: its batches, its loop, and where it stands."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmscale.datasets import Draw, ResolutionSampler, SeededBatches, accept_draws, item_of
from mmscale.errors import UsageError

Draws = ResolutionSampler | SeededBatches


def draws_of(loader: object) -> Draws | None:
    """What yields the draws of a data loader, if its indices are draws."""
    for part in (getattr(loader, 'batch_sampler', None), getattr(loader, 'sampler', None)):
        if isinstance(part, (ResolutionSampler, SeededBatches)):
            return part
    return None


def _start_of(runner: Runner) -> int:
    """The iteration of the first batch that the sampler of a resumed run yields."""
    loader = runner.train_dataloader
    # As MMEngine's loop over iterations resumes: such a sampler passes over what is done.
    is_fast = hasattr(loader.sampler, 'skip') and loader.batch_size is not None
    stays = getattr(runner.train_loop, 'fast_forward_on_resume', False)
    return runner.iter if is_fast or stays else 0


def make_seeded(runner: Runner) -> Draws | None:
    """Makes the images of every training iteration a function of (seed, iteration, rank).

    Whatever the dataset, its wrappers and the sampler are.

    Returns:
        What yields the draws; None where a tool has put something else in the loader's place.
    """
    loader = runner.train_dataloader
    if not isinstance(loader, DataLoader) or loader.batch_sampler is None:
        return None
    batches = loader.batch_sampler
    own = getattr(batches, 'sampler', None)
    if isinstance(own, ResolutionSampler) and draws_of(loader) is None:
        # A batch sampler that chooses by the images cannot look draws up: it gets plain indices.
        own.yields_indices = True
        own.batch_size = own.batch_size or batches.batch_size
    if draws_of(loader) is None:
        accept_draws(loader.dataset)
        seeded = SeededBatches(batches, runner.seed)
        seeded.iteration = _start_of(runner)
        # Loaders guard this attribute, as what iterates over them has it; nothing does yet.
        object.__setattr__(loader, 'batch_sampler', seeded)
    return draws_of(loader)


def connect(runner: Runner) -> None:
    """Tells the draws of a train data loader the batch size and the kind of loop."""
    loader = runner.train_dataloader
    draws = draws_of(loader)
    if isinstance(draws, ResolutionSampler):
        draws.batch_size = loader.batch_size
    if draws is not None and isinstance(runner.train_loop, EpochBasedTrainLoop):
        draws.run_in_epochs(len(loader))


def begin_epoch(runner: Runner) -> None:
    """Tells the draws which epoch comes, and which of its batches a resumed run has seen."""
    draws = draws_of(runner.train_dataloader)
    if draws is not None and isinstance(runner.train_loop, EpochBasedTrainLoop):
        length = len(runner.train_dataloader)
        done = runner.iter - runner.epoch * length
        draws.begin_epoch(runner.epoch, min(max(done, 0), length))


def check_size(inputs: Tensor | Sequence[Tensor], resolution: int, key: str) -> None:
    """Compares the images of a batch with the resolution that they were to be loaded at.

    Args:
        inputs: Images (channels, H, W) as a pipeline packs them, or (N, channels, H, W).
        resolution: In pixels.
        key: The setting that names the dataset.

    Raises:
        UsageError: They are of another size.
    """
    for image in [inputs] if isinstance(inputs, Tensor) else inputs:
        if tuple(image.shape[-2:]) != (resolution, resolution):
            height, width = image.shape[-2:]
            raise UsageError(
                f'{key}: its pipeline makes images of {height} x {width} px where the network is '
                f'to get {resolution} x {resolution}: let mmscale.ResizeToResolution, '
                'mmscale.RandomResizedCropToResolution or mmscale.CenterCropToResolution do the '
                'last resizing, in the place of Resize, CenterCrop and their like'
            )


def check_sizes(dataset: Dataset, resolutions: Collection[int], key: str) -> None:
    """Loads an image at the lowest and at the highest of some resolutions.

    Args:
        dataset: Any dataset or wrapper.
        resolutions: In pixels.
        key: The setting that names the dataset.

    Raises:
        UsageError: It comes in another size.
    """
    for resolution in sorted({min(resolutions), max(resolutions)}):
        item = item_of(dataset, Draw(0, resolution, 0))
        if isinstance(item, dict) and isinstance(item.get('inputs'), Tensor):
            check_size(item['inputs'], resolution, key)


class TrainDataHook(Hook):
    """What all our hooks do that have to do with the train data loader; each suffices."""

    def before_train(self, runner: Runner) -> None:
        """Connects data loader and loop."""
        connect(runner)

    def before_train_epoch(self, runner: Runner) -> None:
        """Chooses the batches of an epoch."""
        begin_epoch(runner)
