"""MMEngine parts: importing this package registers them."""

from mmscale.engine.distributed import SliceParallel
from mmscale.engine.evaluator import SubnetEvaluator
from mmscale.engine.hooks import (
    HierarchicalSamplerHook,
    InputResolutionHook,
    IterationSeedHook,
    StrictLoadHook,
)
from mmscale.engine.search_loops import (
    EvolutionLoop,
    FamilyLoop,
    MCEALoop,
    RandomSearchLoop,
    ScalingLoop,
)

__all__ = [
    'EvolutionLoop',
    'FamilyLoop',
    'HierarchicalSamplerHook',
    'InputResolutionHook',
    'IterationSeedHook',
    'MCEALoop',
    'RandomSearchLoop',
    'ScalingLoop',
    'SliceParallel',
    'StrictLoadHook',
    'SubnetEvaluator',
]
