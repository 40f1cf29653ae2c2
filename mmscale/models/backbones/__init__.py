"""Backbones: the static ArchNet and the weight-sharing SuperNet."""

from mmscale.models.backbones.arch_net import ArchNet, scaled_arch
from mmscale.models.backbones.super_net import Region, SuperNet, index_of

__all__ = ['ArchNet', 'Region', 'SuperNet', 'index_of', 'scaled_arch']
