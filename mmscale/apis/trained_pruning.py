"""Prunes a trained network of any config: by a short search by gradient, or by importance."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import nn

from mmscale.apis.networks import config_image_shape
from mmscale.apis.pruned_files import (
    PrunedFiles,
    check_folder,
    export_search,
    model_settings,
    write_pruned,
)
from mmscale.apis.pruning import chosen_elements
from mmscale.arch.checks import choice, integer, number
from mmscale.config_parts import type_name
from mmscale.engine.calibration import recalibrate
from mmscale.engine.wrappers import unwrapped_model
from mmscale.errors import UsageError
from mmscale.launch.runner import build_runner
from mmscale.models.dms import channel_groups
from mmscale.models.dms.cost import MaskedCost

METHODS = ('dms', 'taylor', 'l1')
METRICS = ('flops', 'params', 'acts')

# Of training data, for the slopes of the loss.
_TAYLOR_BATCHES = 10

# What a run that prunes does without.
_NO_VALIDATION = dict(val_cfg=None, val_dataloader=None, val_evaluator=None)
_NO_TEST = dict(test_cfg=None, test_dataloader=None, test_evaluator=None)


def prune_trained(
    config: Config,
    checkpoint: str | Path,
    out: str | Path,
    method: str = 'dms',
    keep: float = 0.5,
    metric: str = 'flops',
    iterations: int = 200,
    calibration_images: int = 1024,
    recipe: Config | None = None,
    overwrite: bool = False,
    dms_settings: Mapping[str, Any] | None = None,
) -> PrunedFiles:
    """Prunes the trained network of a training config to a share of its cost, and writes it.

    ``dms`` learns the widths and depths by gradient while the weights rest (the paper's DMS_p-):
    a few hundred iterations on the config's training images. ``taylor`` drops the elements of the
    whole network with the least squared slope of the loss; ``l1`` keeps the same share of every
    width, the elements with the largest weights. All measure the statistics of batch norms anew.

    Args:
        config: Config of a training; its model is no search.
        checkpoint: The trained weights.
        out: Folder to write to, see :func:`mmscale.apis.pruned_files.write_pruned`.
        method: ``dms``, ``taylor`` or ``l1``.
        keep: Share of the cost that is left.
        metric: What it is a share of: ``flops``, ``params`` or ``acts``.
        iterations: Of the search, or batches of ``taylor`` (ten at most).
        calibration_images: Number of training images for the statistics of batch norms.
        recipe: Config that ``retrain.py`` inherits from; `config` by default.
        overwrite: Whether to replace an earlier export.
        dms_settings: Further settings of the :class:`mmscale.models.DMSModel` of ``dms``.

    Raises:
        UsageError: A setting is not allowed, the config is of a search, the checkpoint does not
            fit, or the share is out of reach.
    """
    choice('method', method, METHODS)
    choice('metric', metric, METRICS)
    number('keep', keep, above=0, below=1)
    integer('iterations', iterations)
    integer('calibration_images', calibration_images, 0)
    recipe = config if recipe is None else recipe
    check_folder(out, recipe, overwrite)
    if type_name(config.get('model') or {}) == 'DMSModel':
        raise UsageError(
            'model.type=mmscale.DMSModel is a search: give the config of the network alone, or '
            'leave --method out to write what a search has found'
        )
    settings = copy.deepcopy(config)
    settings.merge_from_dict({**_NO_VALIDATION, **_NO_TEST})
    settings.load_from, settings.resume = str(checkpoint), False
    settings.train_cfg = dict(by_epoch=False, max_iters=iterations)
    settings.param_scheduler = None
    # Not in the folder of the training, whose checkpoints and log are its own.
    settings.work_dir = str(Path(out) / 'pruning')
    hooks = dict(settings.get('default_hooks') or {})
    hooks['checkpoint'] = dict(type='CheckpointHook', interval=-1, save_last=False)
    settings.default_hooks = hooks
    if method == 'dms':
        search = dict(target=keep, metric=metric, **(dms_settings or {}))
        return _searched(settings, out, search, calibration_images, recipe)
    return _by_importance(settings, out, method, keep, metric, calibration_images, recipe)


def _searched(
    settings: Config, out: str | Path, search: dict[str, Any], images: int, recipe: Config
) -> PrunedFiles:
    """Prunes by a search of the structure alone."""
    plain = build_runner(copy.deepcopy(settings), 'train')
    shape = config_image_shape(settings, plain.model)
    settings.model = dict(
        type='mmscale.DMSModel',
        model=model_settings(settings),
        input_shape=shape,
        pipeline='p-',
        pretrained=settings.load_from,
        **search,
    )
    settings.pop('data_preprocessor', None)
    settings.load_from = None
    # The weights rest: how they were trained (AMP, accumulation) says nothing here.
    settings.optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.0))
    hooks = list(settings.get('custom_hooks') or [])
    settings.custom_hooks = [*hooks, dict(type='mmscale.DMSHook', calibration_images=images)]
    settings.experiment_name = f'{plain.experiment_name}_search'
    runner = build_runner(settings, 'train')
    runner.train()
    state = unwrapped_model(runner).state_dict()
    return export_search(settings, state, out, recipe, overwrite=True)


def _by_importance(
    settings: Config,
    out: str | Path,
    method: str,
    keep: float,
    metric: str,
    images: int,
    recipe: Config,
) -> PrunedFiles:
    """Prunes by importance: one threshold for all widths (taylor), or a share of each (l1)."""
    runner = build_runner(settings, 'train')
    # As training would begin: hooks set the size of the images, and weights are loaded.
    runner.call_hook('before_run')
    runner.load_or_resume()
    runner.call_hook('before_train')
    model = unwrapped_model(runner)
    shape = config_image_shape(settings, model)
    kind = torch.long if len(shape) == 1 else torch.float32
    inputs = [torch.zeros(1, *shape, dtype=kind)]
    groups = channel_groups(model.cpu(), inputs)
    if not groups.widths:
        raise UsageError(f'{type(model).__name__} has no width that can go')
    keeps = chosen_elements(
        model, groups, inputs, keep, method, runner.train_dataloader, None, metric,
        'model' if method == 'taylor' else 'group', min(_TAYLOR_BATCHES, runner.max_iters),
    )  # fmt: skip
    whole = getattr(MaskedCost(model, groups, inputs).full, metric)

    def finish(pruned: nn.Module) -> None:
        if images:
            recalibrate(pruned, runner.train_dataloader, images)

    budget = {'metric': metric, 'goal': keep * whole, 'ended': True}
    return write_pruned(model, groups, keeps, inputs, recipe, out, budget, finish)
