"""Hooks: importing this package registers them."""

from mmscale.engine.hooks.checkpoint_hook import DurableCheckpointHook
from mmscale.engine.hooks.dms_hook import DMSHook
from mmscale.engine.hooks.finite_loss_hook import FiniteLossHook
from mmscale.engine.hooks.load_hooks import FittingLoadHook, StrictLoadHook
from mmscale.engine.hooks.logger_hook import MainProcessLoggerHook
from mmscale.engine.hooks.preemption_hook import PreemptionHook
from mmscale.engine.hooks.resolution_hook import InputResolutionHook
from mmscale.engine.hooks.sampler_hook import HierarchicalSamplerHook
from mmscale.engine.hooks.seed_hook import IterationSeedHook

__all__ = [
    'DMSHook',
    'DurableCheckpointHook',
    'FiniteLossHook',
    'FittingLoadHook',
    'HierarchicalSamplerHook',
    'InputResolutionHook',
    'IterationSeedHook',
    'MainProcessLoggerHook',
    'PreemptionHook',
    'StrictLoadHook',
]
