"""MMEngine parts: importing this package registers them."""

from mmscale.engine.bfloat16 import BFloat16OptimWrapper
from mmscale.engine.detection_evaluator import DetectionEvaluator
from mmscale.engine.distributed import SliceParallel
from mmscale.engine.evaluator import SubnetEvaluator
from mmscale.engine.flat_loops import (
    EvolutionLoop,
    FamilyLoop,
    MCEALoop,
    ParetoLoop,
    RandomSearchLoop,
    ScalingLoop,
    SeparateSearchLoop,
)
from mmscale.engine.hooks import (
    DMSHook,
    DurableCheckpointHook,
    FiniteLossHook,
    FittingLoadHook,
    HierarchicalSamplerHook,
    InputResolutionHook,
    IterationSeedHook,
    PreemptionHook,
    StrictLoadHook,
)
from mmscale.engine.optimizers import rmsprop_tf
from mmscale.engine.search_loop import SearchLoop

__all__ = [
    'BFloat16OptimWrapper',
    'DMSHook',
    'DetectionEvaluator',
    'DurableCheckpointHook',
    'EvolutionLoop',
    'FamilyLoop',
    'FiniteLossHook',
    'FittingLoadHook',
    'HierarchicalSamplerHook',
    'InputResolutionHook',
    'IterationSeedHook',
    'MCEALoop',
    'ParetoLoop',
    'PreemptionHook',
    'RandomSearchLoop',
    'ScalingLoop',
    'SearchLoop',
    'SeparateSearchLoop',
    'SliceParallel',
    'StrictLoadHook',
    'SubnetEvaluator',
    'rmsprop_tf',
]
