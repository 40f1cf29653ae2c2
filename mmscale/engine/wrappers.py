"""The model of a run without what stands around it."""

from __future__ import annotations

from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from torch import nn


def unwrapped_model(runner: Runner) -> nn.Module:
    """The config's own model, without wrappers of distribution and of test-time augmentation."""
    model = runner.model
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def is_stand_in(runner: Runner, model: nn.Module) -> bool:
    """Whether a tool runs a config's hooks with a model of its own, as mmpretrain's vis_scheduler.

    Such a model has no network, and the runner no config of one.
    """
    return not runner.cfg.get('model') and not hasattr(model, 'backbone')
