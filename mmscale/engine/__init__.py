"""MMEngine parts: importing this package registers them."""

from mmscale.engine.bfloat16 import BFloat16OptimWrapper
from mmscale.engine.detection_evaluator import DetectionEvaluator
from mmscale.engine.distributed import SliceParallel
from mmscale.engine.evaluator import SubnetEvaluator
from mmscale.engine.hooks import (
    DMSHook,
    DurableCheckpointHook,
    FiniteLossHook,
    HierarchicalSamplerHook,
    InputResolutionHook,
    IterationSeedHook,
    PreemptionHook,
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
    'BFloat16OptimWrapper',
    'DMSHook',
    'DetectionEvaluator',
    'DurableCheckpointHook',
    'EvolutionLoop',
    'FamilyLoop',
    'FiniteLossHook',
    'HierarchicalSamplerHook',
    'InputResolutionHook',
    'IterationSeedHook',
    'MCEALoop',
    'ParetoLoop',
    'PreemptionHook',
    'RandomSearchLoop',
    'ScalingLoop',
    'SeparateSearchLoop',
    'SliceParallel',
    'StrictLoadHook',
    'SubnetEvaluator',
]
