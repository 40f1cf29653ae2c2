"""Hooks: importing this package registers them."""

from mmscale.engine.hooks.dms_hook import DMSHook
from mmscale.engine.hooks.logger_hook import MainProcessLoggerHook
from mmscale.engine.hooks.resolution_hook import InputResolutionHook
from mmscale.engine.hooks.sampler_hook import HierarchicalSamplerHook
from mmscale.engine.hooks.seed_hook import IterationSeedHook
from mmscale.engine.hooks.strict_load_hook import StrictLoadHook

__all__ = [
    'DMSHook',
    'HierarchicalSamplerHook',
    'InputResolutionHook',
    'IterationSeedHook',
    'MainProcessLoggerHook',
    'StrictLoadHook',
]
