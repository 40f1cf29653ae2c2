"""A checkpoint that does not fit the model is an error, never random weights in silence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from mmscale.engine.wrappers import unwrapped_model
from mmscale.errors import FOREIGN_ERRORS, UsageError, one_line
from mmscale.models.checkpoints import misfit, state_of, unwrapped_state
from mmscale.registry import HOOKS
from mmscale.shown import shortly


def _check_weights(state: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Checks that what a model shall load are tensors, and versions of its parts.

    Raises:
        UsageError: It is something else.
    """
    for key in wanted.keys() & state.keys():
        # Some modules keep other things besides.
        if isinstance(wanted[key], torch.Tensor) and not isinstance(state[key], torch.Tensor):
            raise UsageError(f'the checkpoint: {key:.80}={shortly(state[key])} must be a Tensor')
    versions = getattr(state, '_metadata', None) or {}
    is_dict = isinstance(versions, dict)
    for part in versions.values() if is_dict else [versions]:
        version = part.get('version') if isinstance(part, dict) else part
        if not isinstance(part, dict) or not (version is None or type(version) is int):
            raise UsageError(f'the checkpoint: _metadata={shortly(versions)} has no versions')


@HOOKS.register_module()
class StrictLoadHook(Hook):
    """Compares every loaded checkpoint with the model before it is used.

    Args:
        prefix: Only keys that begin so are compared, as ``backbone.`` where a detector may be
            given a head for other classes; all by default.

    Raises:
        ValueError: Keys are missing or left over, or shapes differ; the message names some.
    """

    def __init__(self, prefix: str = '') -> None:
        self._prefix = prefix

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Checks a checkpoint that the runner loads."""
        model = unwrapped_model(runner)
        wanted, found = (
            {key: tensor for key, tensor in state.items() if key.startswith(self._prefix)}
            for state in (model.state_dict(), checkpoint.get('state_dict', checkpoint))
        )
        if not wanted:
            raise UsageError(f'StrictLoadHook: the model has no key with prefix={self._prefix!r}')
        difference = misfit(wanted, found)
        if difference:
            raise UsageError(f'the checkpoint does not fit the model: {difference}')


@HOOKS.register_module()
class FittingLoadHook(Hook):
    """Reads a checkpoint by the model's own names, and refuses what leaves weights random.

    All runs of our tools have it. A training may start from some of the weights; one that is
    resumed, and a test, need them all.

    Args:
        all_weights: Whether every parameter must be there, in its shape.

    Raises:
        ValueError: Not one key is one of the model's, or a parameter is missing that is needed, or
            is not finite; the message names some.
    """

    # Others look at what it makes of the names.
    priority = 'VERY_HIGH'

    def __init__(self, all_weights: bool = False) -> None:
        self._all_weights = all_weights

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Renames the weights of a checkpoint that the runner loads, and checks them."""
        if isinstance(runner.model, FullyShardedDataParallel):
            return  # its parts hold pieces of weights, by names of their own
        state = state_of(checkpoint)
        if not all(isinstance(key, str) for key in state):
            raise UsageError('the checkpoint holds no weights by their names')
        found = unwrapped_state(state)
        if found.keys() != state.keys():
            state = found  # otherwise it is kept, as it knows the version of each part
        if state is not checkpoint:
            checkpoint['state_dict'] = state
        model = unwrapped_model(runner)
        wanted = model.state_dict()
        _check_weights(state, wanted)
        if not wanted.keys() & found.keys():
            raise UsageError(f'the checkpoint does not fit the model: {misfit(wanted, found)}')
        if self._all_weights or runner._resume:
            self._check_all(model, state)

    def _check_all(self, model: nn.Module, state: dict[str, Any]) -> None:
        wanted = dict(model.named_parameters())
        difference = ''
        try:
            # Models may know older names and other sizes of their weights when they load them.
            missing, left_over = model.load_state_dict(state, strict=False)
        except FOREIGN_ERRORS as error:
            difference = misfit(wanted, {**wanted, **state}) or one_line(error)
        else:
            if wanted.keys() & {*missing}:
                loaded = {key: wanted[key] for key in wanted.keys() - {*missing}}
                difference = misfit(wanted, loaded | {key: state[key] for key in left_over})
        if difference:
            raise UsageError(f'the checkpoint does not fit the model: {difference:.400}')
        broken = [key for key, weight in wanted.items() if not weight.isfinite().all()]
        if broken:
            raise UsageError(f'the weights of the checkpoint are not finite: {broken[0]}')
