"""Differentiable model scaling: the operator, channel groups, masks and pruning."""

from mmscale.models.dms.arch_groups import arch_groups
from mmscale.models.dms.distill import DISTClassifier, DistilledCausalLM
from mmscale.models.dms.export import pruned_arch, pruned_model, renumbered
from mmscale.models.dms.find import (
    channel_groups,
    check_module,
    declare_groups,
    is_described_by_arch,
    static_model,
)
from mmscale.models.dms.groups import ChannelGroup, ChannelGroups, DepthGroup, Member
from mmscale.models.dms.masking import Masks
from mmscale.models.dms.model import DMSModel
from mmscale.models.dms.prune import Pruning, apply_pruning, plan_pruning
from mmscale.models.dms.topk import DifferentiableTopK

__all__ = [
    'ChannelGroup',
    'ChannelGroups',
    'DISTClassifier',
    'DMSModel',
    'DepthGroup',
    'DifferentiableTopK',
    'DistilledCausalLM',
    'Masks',
    'Member',
    'Pruning',
    'apply_pruning',
    'arch_groups',
    'channel_groups',
    'check_module',
    'declare_groups',
    'is_described_by_arch',
    'plan_pruning',
    'pruned_arch',
    'pruned_model',
    'renumbered',
    'static_model',
]
