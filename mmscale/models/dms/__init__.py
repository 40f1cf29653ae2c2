"""Differentiable model scaling: the operator, channel groups, masks and pruning."""

from mmscale.models.dms.arch_groups import arch_groups
from mmscale.models.dms.groups import ChannelGroup, ChannelGroups, DepthGroup, Member
from mmscale.models.dms.masking import Masks
from mmscale.models.dms.topk import DifferentiableTopK

__all__ = [
    'ChannelGroup',
    'ChannelGroups',
    'DepthGroup',
    'DifferentiableTopK',
    'Masks',
    'Member',
    'arch_groups',
]
