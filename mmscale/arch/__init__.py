"""Networks as data: Arch, search space and scaling rules. Pure Python and NumPy."""

from mmscale.arch.arch import Arch, Block, Head, SqueezeExcite, Stem
from mmscale.arch.presets import get_arch, preset_names
from mmscale.arch.sampling import HierarchicalSampler, SubnetDraw
from mmscale.arch.scaling import (
    WIDTH_RULES,
    Rounding,
    Scaling,
    WidthRule,
    apply_scaling,
    compound_scaling,
    width_rule,
)
from mmscale.arch.space import Genotype, SearchSpace

__all__ = [
    'WIDTH_RULES',
    'Arch',
    'Block',
    'Genotype',
    'Head',
    'HierarchicalSampler',
    'Rounding',
    'Scaling',
    'SearchSpace',
    'SqueezeExcite',
    'Stem',
    'SubnetDraw',
    'WidthRule',
    'apply_scaling',
    'compound_scaling',
    'get_arch',
    'preset_names',
    'width_rule',
]
