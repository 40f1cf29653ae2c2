"""Counts what a config builds: classifiers, detectors with their samples, language models."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mmscale.apis.networks import Network
from mmscale.cost import ModuleCost, count_module
from mmscale.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

# Boxes that a detector without a network for proposals gets, as many as such networks propose.
_PROPOSALS = 1000


def count_network(
    network: Network, convention: str = 'mmscale', batch: int = 1, memory: bool | None = None
) -> ModuleCost:
    """Counts a network that a user named, at the size it is made for.

    A detector gets the samples that it needs, as of images without a border; one without a
    network for proposals gets 1,000 boxes.

    Args:
        network: The network.
        convention: ``mmscale`` or ``pycls``.
        batch: Images or texts that memory is counted for.
        memory: Whether to count memory too; by default where that takes no real numbers, as it
            does for detectors that get samples: minutes and gigabytes.

    Raises:
        UsageError: It cannot be built, or does not run on such an input.
    """
    try:
        return _count(network, network.skeleton, convention, batch, memory)
    except UsageError:  # it may need numbers on its way
        return _count(network, network.build(), convention, batch, memory)


def _count(
    network: Network, module: nn.Module, convention: str, batch: int, memory: bool | None
) -> ModuleCost:
    shape = network.image_shape
    samples = None if len(shape) == 1 else samples_of(module, shape)
    memory = samples is None if memory is None else memory
    if len(shape) == 1:
        one = count_module(module, inputs=texts(shape), convention=convention, memory=memory)
        if not memory or batch == 1:
            return one
        many = count_module(module, inputs=texts(shape, batch), convention=convention)
        return replace(
            one,
            batch=batch,
            peak_bytes_inference=many.peak_bytes_inference,
            activation_bytes_training=many.activation_bytes_training,
        )
    return count_module(
        module, shape, None, convention, batch, memory,
        keywords=samples,
        draw=network.config is not None,  # else its weights may be trained ones
    )  # fmt: skip


def texts(shape: Sequence[int], batch: int = 1) -> tuple[torch.Tensor]:
    """Tokens of a batch of texts of that length, as the arguments of a language model."""
    import torch

    return (torch.zeros(batch, *shape, dtype=torch.long, device='meta'),)


def samples_of(module: nn.Module, shape: Sequence[int]) -> Callable[[int], dict[str, Any]] | None:
    """What makes the samples of a detector of mmdet; None for any other model."""
    if (
        'mmdet' not in sys.modules
        or 'data_samples' not in inspect.signature(module.forward).parameters
    ):
        return None
    import torch
    from mmdet.models.detectors.base import BaseDetector
    from mmdet.models.detectors.single_stage_instance_seg import SingleStageInstanceSegmentor
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    detector = next((part for part in module.modules() if isinstance(part, BaseDetector)), None)
    if detector is None:
        return None
    size = tuple(shape[1:])

    def sample() -> DetDataSample:
        about = dict(
            img_id=0, img_path='', ori_shape=size, img_shape=size, pad_shape=size,
            batch_input_shape=size, scale_factor=(1.0, 1.0), flip=False, flip_direction=None,
        )  # fmt: skip
        made = DetDataSample(metainfo=about)
        labels = torch.zeros(0, dtype=torch.long)
        made.gt_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=labels)
        if hasattr(detector, 'roi_head') and not getattr(detector, 'with_rpn', True):
            boxes = torch.tensor([[0.0, 0.0, size[1], size[0]]]).repeat(_PROPOSALS, 1)
            made.proposals = InstanceData(bboxes=boxes, scores=torch.ones(_PROPOSALS))
        return made

    # Masks of boxes are made of those that were found, or else of the true ones.
    needs_boxes = isinstance(detector, SingleStageInstanceSegmentor) and detector.with_bbox
    mode = {'mode': 'predict'} if needs_boxes else {}
    return lambda batch: {'data_samples': [sample() for _ in range(batch)], **mode}
