"""Backbones: the static ArchNet, the weight-sharing SuperNet, mmpretrain's with free depths."""

from mmscale.models.backbones.arch_net import ArchNet, scaled_arch
from mmscale.models.backbones.scalable import (
    ScalableMobileNetV2,
    ScalableRegNet,
    ScalableResNet,
)
from mmscale.models.backbones.slices import Region, WeightSlice, disjoint, index_of, relative
from mmscale.models.backbones.super_net import SuperNet

__all__ = [
    'ArchNet',
    'Region',
    'ScalableMobileNetV2',
    'ScalableRegNet',
    'ScalableResNet',
    'SuperNet',
    'WeightSlice',
    'disjoint',
    'index_of',
    'relative',
    'scaled_arch',
]
