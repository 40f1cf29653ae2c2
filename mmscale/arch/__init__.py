"""Networks as data: Arch, search space, families and scaling rules. Pure Python and NumPy."""

from mmscale.arch.arch import Arch, Block, Head, SqueezeExcite, Stem
from mmscale.arch.families import efficientnet, mobilenet_v2, mobilenet_v3, regnet, resnet
from mmscale.arch.presets import get_arch, list_archs, preset_name, preset_names
from mmscale.arch.pycls import group_widths
from mmscale.arch.rounding import PYCLS_ROUNDING, Rounding, Scaling
from mmscale.arch.rules import SCALING_RULES, ScalingRule, fast_rule, scaling_rule
from mmscale.arch.sampling import HierarchicalSampler, SubnetDraw
from mmscale.arch.scaling import WIDTH_RULES, WidthRule, apply_scaling, width_rule
from mmscale.arch.space import Genotype, SearchSpace

__all__ = [
    'PYCLS_ROUNDING',
    'SCALING_RULES',
    'WIDTH_RULES',
    'Arch',
    'Block',
    'Genotype',
    'Head',
    'HierarchicalSampler',
    'Rounding',
    'Scaling',
    'ScalingRule',
    'SearchSpace',
    'SqueezeExcite',
    'Stem',
    'SubnetDraw',
    'WidthRule',
    'apply_scaling',
    'efficientnet',
    'fast_rule',
    'get_arch',
    'group_widths',
    'list_archs',
    'mobilenet_v2',
    'mobilenet_v3',
    'preset_name',
    'preset_names',
    'regnet',
    'resnet',
    'scaling_rule',
    'width_rule',
]
