"""The registries of mmscale: children of MMEngine's, with scope ``mmscale``.

A config names a part as ``type='mmscale.ArchNet'``. MMEngine imports this module when it meets the
scope and the package a registry names when it first looks a part up there.
"""

from mmengine import registry as mmengine_registry
from mmengine.registry import Registry


def _child(parent: Registry, package: str) -> Registry:
    return Registry(parent.name, parent=parent, scope='mmscale', locations=[f'mmscale.{package}'])


MODELS = _child(mmengine_registry.MODELS, 'models')

HOOKS = _child(mmengine_registry.HOOKS, 'engine')
LOOPS = _child(mmengine_registry.LOOPS, 'engine')
MODEL_WRAPPERS = _child(mmengine_registry.MODEL_WRAPPERS, 'engine')
OPTIMIZERS = _child(mmengine_registry.OPTIMIZERS, 'engine')
OPTIM_WRAPPERS = _child(mmengine_registry.OPTIM_WRAPPERS, 'engine')
TASK_UTILS = _child(mmengine_registry.TASK_UTILS, 'engine')

# Searches are classes of mmscale.search; MMEngine has no such registry.
SEARCHES = Registry('search', scope='mmscale', locations=['mmscale.engine'])

METRICS = _child(mmengine_registry.METRICS, 'evaluation')

DATASETS = _child(mmengine_registry.DATASETS, 'datasets')
DATA_SAMPLERS = _child(mmengine_registry.DATA_SAMPLERS, 'datasets')
TRANSFORMS = _child(mmengine_registry.TRANSFORMS, 'datasets')
