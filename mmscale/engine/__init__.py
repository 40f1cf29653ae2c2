"""MMEngine parts: importing this package registers them."""

from mmscale.engine.distributed import SliceParallel
from mmscale.engine.evaluator import SubnetEvaluator
from mmscale.engine.hooks import (
    DMSHook,
    HierarchicalSamplerHook,
    InputResolutionHook,
    IterationSeedHook,
    StrictLoadHook,
)
from mmscale.engine.pareto_loop import ParetoLoop
from mmscale.engine.search_loops import (
    EvolutionLoop,
    FamilyLoop,
    MCEALoop,
    RandomSearchLoop,
    ScalingLoop,
    SeparateSearchLoop,
)

__all__ = [
    'DMSHook',
    'EvolutionLoop',
    'FamilyLoop',
    'HierarchicalSamplerHook',
    'InputResolutionHook',
    'IterationSeedHook',
    'MCEALoop',
    'ParetoLoop',
    'RandomSearchLoop',
    'ScalingLoop',
    'SeparateSearchLoop',
    'SliceParallel',
    'StrictLoadHook',
    'SubnetEvaluator',
]
