"""Differentiable model scaling: the operator, channel groups, masks and pruning."""

from mmscale.models.dms.topk import DifferentiableTopK

__all__ = ['DifferentiableTopK']
