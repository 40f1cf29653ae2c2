"""Pruning of models in one call: by a fraction, by groups, or to a share of the cost."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from numbers import Real
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import nn

from mmscale.arch.checks import choice, integer, number
from mmscale.cost import ModuleCost, count_module
from mmscale.engine.calibration import recalibrate
from mmscale.errors import UsageError
from mmscale.models.dms import (
    ChannelGroups,
    apply_pruning,
    channel_groups,
    check_module,
    plan_pruning,
    static_model,
)
from mmscale.models.dms.importance import IMPORTANCES, SCOPES, Chooser, element_importance

Keep = float | Sequence[int]
Loss = Callable[[nn.Module, Any], torch.Tensor]

_METRICS = ('flops', 'params', 'acts')

__all__ = ['channel_groups', 'prune']


def prune(
    model: nn.Module,
    inputs: Sequence[torch.Tensor],
    keep: float | Mapping[str, Keep],
    importance: str = 'l1',
    batches: Iterable[Any] | None = None,
    loss: Loss | None = None,
    metric: str | None = None,
    scope: str = 'group',
    taylor_batches: int = 10,
    calibration_images: int = 1024,
) -> tuple[nn.Module, ModuleCost]:
    """A smaller copy of a model, and its cost for the very inputs, a batch of them as a whole.

    Args:
        model: Any model; it is left as it is.
        inputs: Positional arguments of one forward pass.
        keep: How much stays of every width group (blocks all stay), or by the names of width and
            depth groups: a fraction, rounded to whole elements of which one stays at least, or
            the indices that stay, a list of integers. A fraction keeps the most important
            elements, and the first blocks. With a `metric`: the share of the model's cost.
        importance: ``l1``, the L1 norm of the weights that make an element; or ``taylor``, the
            squared slope of the loss on it, which needs `batches`.
        batches: Batches of training data, as a list or a data loader. With them statistics of
            batch norms are measured anew on what is left, which much of its accuracy hangs on. A
            model of MMEngine takes what its train_dataloader gives, any other model pairs of
            inputs and labels.
        loss: Loss of a model on a batch, a scalar, for ``taylor``. By default the sum of its own
            losses for a model of MMEngine, and the cross entropy for any other.
        metric: ``flops``, ``params`` or ``acts``, which `keep` is a share of.
        scope: With a metric: ``group`` keeps the same share of every group; ``model`` has one
            threshold of importance for all groups.
        taylor_batches: How many of the batches ``taylor`` takes.
        calibration_images: How many images of the batches the statistics are measured on; 0
            leaves them as they are.

    Raises:
        UsageError: A fraction, a name, an index or a setting is not allowed, the share is out of
            reach, or the model cannot be traced.

    Example:
        >>> import torch, torchvision
        >>> images = torch.zeros(1, 3, 64, 64)
        >>> small, cost = prune(torchvision.models.resnet18(), (images,), keep=0.5)
        >>> cost.params
        3055880
        >>> tuple(small(images).shape)
        (1, 1000)
    """
    _check_settings(keep, importance, batches, metric, scope, taylor_batches, calibration_images)
    check_module(model, inputs)
    try:
        small = static_model(copy.deepcopy(model))
    except RuntimeError as error:
        raise UsageError(f'{type(model).__name__} cannot be copied: {error!s:.300}') from error
    groups = channel_groups(small, inputs)
    if isinstance(keep, Real) and not groups.widths:
        raise UsageError(f'keep={keep}: {type(model).__name__} has no width that can go')
    chosen = chosen_elements(
        small, groups, inputs, keep, importance, batches, loss, metric, scope, taylor_batches
    )
    apply_pruning(small, plan_pruning(small, groups, chosen))
    if batches is not None and calibration_images:
        recalibrate(small, batches, calibration_images)
    return small, count_module(small, inputs=inputs, memory=False)


def chosen_elements(
    model: nn.Module,
    groups: ChannelGroups,
    inputs: Sequence[torch.Tensor],
    keep: float | Mapping[str, Keep],
    importance: str,
    batches: Iterable[Any] | None,
    loss: Loss | None,
    metric: str | None,
    scope: str,
    taylor_batches: int,
) -> dict[str, Sequence[int]]:
    """Indices of what stays of a model's groups; the arguments are those of :func:`prune`."""
    names = [group.name for group in groups.widths] if isinstance(keep, Real) else list(keep)
    unknown = sorted(set(names) - groups.by_name.keys())
    if unknown:
        raise UsageError(f'keep: there is no group {unknown[0]}; see print(channel_groups(...))')
    shares = dict.fromkeys(names, keep) if isinstance(keep, Real) else dict(keep)
    for name, share in shares.items():
        if isinstance(share, Real):
            value = share if isinstance(share, bool) else float(share)
            owner = 'keep' if isinstance(keep, Real) else f'keep: {name}'
            number(owner, value, above=0, most=1)
    found = element_importance(
        model, groups, importance, islice(batches or (), taylor_batches), loss or _loss_of(model)
    )
    if metric is not None:
        return Chooser(model, groups, inputs, found).for_cost(scope, keep, metric)
    chosen = {}
    for name, share in shares.items():
        group = groups.by_name[name]
        if not isinstance(share, Real):
            chosen[name] = share
            continue
        count = max(1, round(share * group.size))
        order = found[name].topk(count).indices.tolist() if name in found else range(count)
        chosen[name] = order
    return chosen


def _check_settings(
    keep: object,
    importance: object,
    batches: object,
    metric: object,
    scope: object,
    taylor_batches: object,
    calibration_images: object,
) -> None:
    if not isinstance(keep, (Real, Mapping)) or isinstance(keep, bool):
        raise UsageError(f'keep={keep!r:.60} must be a fraction, or a dict by names of groups')
    choice('importance', importance, IMPORTANCES)
    choice('scope', scope, SCOPES)
    integer('taylor_batches', taylor_batches)
    integer('calibration_images', calibration_images, 0)
    if importance == 'taylor' and batches is None:
        raise UsageError('importance=taylor needs batches of training data: batches=...')
    if batches is not None and not isinstance(batches, Iterable):
        raise UsageError(f'batches={batches!r:.60} must be a list of batches or a data loader')
    if batches is not None and iter(batches) is batches:
        raise UsageError(
            f'batches is a {type(batches).__name__}, which can be gone through once: give a list '
            'or a data loader'
        )
    if metric is None:
        if scope == 'model':
            raise UsageError("scope='model' needs a metric: keep is the share of its cost")
        return
    choice('metric', metric, _METRICS)
    if not isinstance(keep, Real):
        raise UsageError(f'keep={keep!r:.60} must be a fraction, as metric={metric} is given')
    number('keep', float(keep), above=0, most=1)


def _loss_of(model: nn.Module) -> Loss:
    return _own_losses if isinstance(model, BaseModel) else _cross_entropy


def _own_losses(model: nn.Module, batch: Any) -> torch.Tensor:
    """The sum of the losses of a model of MMEngine."""
    data = model.data_preprocessor(batch, True)
    return model.parse_losses(model(**data, mode='loss'))[0]


def _cross_entropy(model: nn.Module, batch: Any) -> torch.Tensor:
    """The cross entropy of any other model on a pair of inputs and labels."""
    try:
        inputs, labels = batch
    except (TypeError, ValueError) as error:
        raise UsageError('batches must hold pairs of inputs and labels, or give a loss') from error
    device = next(model.parameters()).device
    return nn.functional.cross_entropy(model(inputs.to(device)), labels.to(device))
