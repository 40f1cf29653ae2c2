"""Data: digit images to classify or detect, text, and loading at a drawn resolution and seed."""

from mmscale.datasets.cluttered_digits import ClutteredDigits
from mmscale.datasets.composer import Composite, Composition, compose_image
from mmscale.datasets.digits_detection import DetectionFiles, digits_detection
from mmscale.datasets.draws import Draw, accept_draws, item_of
from mmscale.datasets.reading import build_dataloader, load_item
from mmscale.datasets.samplers import ResolutionSampler, SeededBatches
from mmscale.datasets.seeded_dataset import SeededDataset
from mmscale.datasets.tokens import StandardLibrary, TokenFile
from mmscale.datasets.transforms import (
    CenterCropToResolution,
    GrayImage,
    LoadRandomResizedCropToResolution,
    RandomResizedCropToResolution,
    ResizeToResolution,
)

__all__ = [
    'CenterCropToResolution',
    'ClutteredDigits',
    'Composite',
    'Composition',
    'DetectionFiles',
    'Draw',
    'GrayImage',
    'LoadRandomResizedCropToResolution',
    'RandomResizedCropToResolution',
    'ResizeToResolution',
    'ResolutionSampler',
    'SeededBatches',
    'SeededDataset',
    'StandardLibrary',
    'TokenFile',
    'accept_draws',
    'build_dataloader',
    'compose_image',
    'digits_detection',
    'item_of',
    'load_item',
]
