"""Statistics of BN layers, measured anew on a set of images."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any, TypeVar

import torch
from mmengine.dist import get_dist_info
from mmengine.model import BaseModel
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from mmscale.datasets import Draw
from mmscale.datasets.draws import seed_of
from mmscale.engine.train_data import draws_of
from mmscale.errors import UsageError

Item = TypeVar('Item')


def even_batches(items: Sequence[Item], size: int) -> list[list[Item]]:
    """Batches of a size at most that differ by one item at most, in the order of the items.

    A batch of one image would have no statistics in maps of 1 x 1: there is none, unless the
    size is 1 or there is one item. So of an odd number in batches of two, one has three.

    Example:
        >>> [len(batch) for batch in even_batches(range(65), 32)]
        [22, 22, 21]
    """
    count = -(-len(items) // size)
    if size > 1:
        count = min(count, max(len(items) // 2, 1))
    ends = [-(-len(items) * i // count) for i in range(count + 1)]
    return [list(items[start:end]) for start, end in pairwise(ends)]


class Recalibration:
    """Measures the statistics of a network's BN layers, batch by batch; it is in training mode.

    As ``torch.optim.swa_utils.update_bn``, but the images of a smaller batch count no more than
    others.

    Args:
        net: The network.
        frozen: Layers of it whose statistics stay.
    """

    def __init__(self, net: nn.Module, frozen: Collection[nn.Module] = ()) -> None:
        self._net = net
        net.train()  # MMEngine's may return nothing
        for layer in frozen:
            layer.eval()
        # Layers that stay in eval mode (norm_eval) would never be measured.
        self._layers = [
            module
            for module in net.modules()
            if isinstance(module, _BatchNorm) and module.training and module.track_running_stats
        ]
        self._momenta = [layer.momentum for layer in self._layers]
        self._seen = 0
        for layer in self._layers:
            layer.reset_running_stats()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to measure."""
        return not self._layers

    @torch.no_grad()
    def see(self, inputs: torch.Tensor) -> None:
        """Counts a batch of images (N, channels, height, width), normalised."""
        self._seen += len(inputs)
        for layer in self._layers:
            layer.momentum = len(inputs) / self._seen
        self._net(inputs)

    def finish(self) -> None:
        """Gives the layers back the momenta that they had; the last thing to do."""
        for layer, momentum in zip(self._layers, self._momenta, strict=True):
            layer.momentum = momentum


def _chosen_batches(loader: DataLoader, images: int) -> DataLoader:
    """Batches of images of a loader's dataset, the same ones wherever a resumed run has begun.

    In this process, and by a loader of their own: iterating over one that has workers would end
    what a train loop is in the midst of.
    """
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(loader.dataset), generator=generator).tolist()
    rank, world_size = get_dist_info()
    chosen: list[Any] = order[rank::world_size][:images]
    draws = draws_of(loader)
    if draws is not None:
        resolution = draws.resolution_at(0)
        chosen = [
            Draw(index, resolution, seed_of(0, rank, place)) for place, index in enumerate(chosen)
        ]
    size = loader.batch_size or getattr(loader.batch_sampler, 'batch_size', None) or 32
    return DataLoader(
        loader.dataset, batch_sampler=even_batches(chosen, size), collate_fn=loader.collate_fn
    )


def _images_of(model: nn.Module, batch: Mapping | Sequence) -> torch.Tensor:
    """Images of a batch, normalised where the model knows how."""
    if isinstance(model, BaseModel):
        return model.data_preprocessor(batch, False)['inputs']
    images = batch[0] if isinstance(batch, (list, tuple)) and batch else batch
    if not isinstance(images, torch.Tensor):
        raise UsageError(
            f'a batch is a {type(batch).__name__}: to measure the statistics of BN layers it must '
            'be images, or a sequence that begins with them'
        )
    return images.to(next(model.parameters()).device)


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Any], images: int) -> int:
    """Measures the statistics of a model's BN layers on training images; leaves its mode alone.

    Args:
        model: A model of images (N, channels, H, W), which it takes as its only argument.
        batches: What the ``data_preprocessor`` of a model of MMEngine takes, as a train_dataloader
            gives it; for any other model images, or sequences that begin with them.
        images: How many of them at least, if there are as many.

    Returns:
        How many were seen: 0 where nothing is to be measured.

    Raises:
        UsageError: There are no batches, or they are of another form.
    """
    if isinstance(batches, DataLoader) and hasattr(batches.dataset, '__len__'):
        batches = _chosen_batches(batches, images)
    batches = iter(batches)
    first = next(batches, None)
    if first is None:
        raise UsageError('there are no batches to measure the statistics of BN layers on')
    modes = {module: module.training for module in model.modules()}
    # In a network that is trained, those in eval mode are frozen.
    frozen = [m for m, training in modes.items() if isinstance(m, _BatchNorm) and not training]
    statistics = Recalibration(model, frozen if model.training else ())
    seen = 0
    for batch in () if statistics.is_empty else chain([first], batches):
        inputs = _images_of(model, batch)
        statistics.see(inputs)
        seen += len(inputs)
        if seen >= images:
            break
    statistics.finish()
    for module, training in modes.items():
        module.training = training
    return seen
