"""Models: importing this package registers them."""

from mmscale.quiet import quiet_imports

with quiet_imports():
    import mmpretrain.models  # noqa: F401 - says what it cannot import, which is not used here

from mmscale.models.arch_classifier import ArchClassifier
from mmscale.models.backbones import ArchNet, SuperNet
from mmscale.models.causal_lm import CausalLM
from mmscale.models.dms import DifferentiableTopK, DMSModel
from mmscale.models.heads import DropoutClsHead
from mmscale.models.slice_step import step_slices
from mmscale.models.super_net_classifier import SuperNetClassifier
from mmscale.models.super_net_detector import SuperNetDetector
from mmscale.models.super_net_training import SuperNetTraining

__all__ = [
    'ArchClassifier',
    'ArchNet',
    'CausalLM',
    'DMSModel',
    'DifferentiableTopK',
    'DropoutClsHead',
    'SuperNet',
    'SuperNetClassifier',
    'SuperNetDetector',
    'SuperNetTraining',
    'step_slices',
]
