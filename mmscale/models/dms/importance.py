"""Pruning without a search: importance of elements, and which ones a share of the cost keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from mmscale.cost import Cost
from mmscale.errors import FOREIGN_ERRORS, UsageError, one_line
from mmscale.models.dms.cost import MaskedCost
from mmscale.models.dms.groups import ChannelGroups
from mmscale.models.dms.masking import Masks, weight_importance
from mmscale.models.dms.topk import DifferentiableTopK

IMPORTANCES = ('l1', 'taylor')
SCOPES = ('group', 'model')

# So hard that all masks are 1 to rounding.
_WHOLE = 100.0


def element_importance(
    model: nn.Module,
    groups: ChannelGroups,
    importance: str,
    batches: Iterable[Any] = (),
    loss: Callable[[nn.Module, Any], torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """Importance of each element of the width groups of a model, shape (size,) each, by name.

    ``l1`` is the sum of the absolute weights that make an element. ``taylor`` is the mean over
    batches of ``(dL/dm)^2``, with a mask m of 1 on whatever consumes the element: the first-order
    estimate of the squared change of the loss without it (Molchanov et al., 2019; DMS, Eq. 4).

    Args:
        model: The model; it is left as it is, but for gradients.
        groups: What can go.
        importance: ``l1`` or ``taylor``.
        batches: For ``taylor``: batches of training data.
        loss: For ``taylor``: the loss of a model on such a batch, a scalar.

    Raises:
        UsageError: There are no batches, or the loss is not finite.
    """
    if importance == 'l1':
        return {group.name: weight_importance(model, group) for group in groups.widths}
    gates = nn.ModuleDict(
        {
            group.key: DifferentiableTopK(group.size, _WHOLE * group.size, midpoint=True)
            for group in groups.widths
        }
    ).to(next(model.parameters()).device)
    names = {group.key: group.name for group in groups.widths}
    total = {group.name: torch.zeros(group.size) for group in groups.widths}
    masks = Masks(model, groups, gates)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    seen = 0
    try:
        for batch in batches:
            with torch.enable_grad():
                _loss_of(model, batch, loss, seen).backward()
            for key, (_, gradient) in masks.collect().items():
                total[names[key]] += gradient.detach().cpu() ** 2
            model.zero_grad()
            seen += 1
    finally:
        masks.remove()
        for module, training in modes.items():
            module.training = training
    if not seen:
        raise UsageError('importance=taylor needs batches of training data, and there are none')
    return {name: value / seen for name, value in total.items()}


def _loss_of(
    model: nn.Module, batch: Any, loss: Callable[[nn.Module, Any], torch.Tensor], number: int
) -> torch.Tensor:
    """The loss of a batch, a scalar with a gradient."""
    try:
        value = loss(model, batch)
    except FOREIGN_ERRORS as error:  # of the user's own code
        raise UsageError(f'the loss of batch {number}: {one_line(error):.300}') from error
    if not isinstance(value, torch.Tensor) or value.numel() != 1 or not value.requires_grad:
        raise UsageError(
            f'the loss of batch {number} is {value!r:.100}; it must be a scalar tensor with a '
            'gradient'
        )
    if not bool(torch.isfinite(value)):
        raise UsageError(f'the loss of batch {number} is {float(value)}, not a number')
    return value


class Chooser:
    """Chooses what of a network's widths stays, for a share of the cost.

    Args:
        model: The network.
        groups: What can go; blocks all stay.
        inputs: Positional arguments of one forward pass.
        importance: Of each element by the groups' names.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: ChannelGroups,
        inputs: Iterable[torch.Tensor],
        importance: Mapping[str, torch.Tensor],
    ) -> None:
        self._groups = groups
        self._cost = MaskedCost(model, groups, list(inputs))
        self._order = {
            group.name: importance[group.name].argsort(descending=True, stable=True).tolist()
            for group in groups.widths
        }
        # Of each group the most important element stays.
        self._ascending = [
            (name, index)
            for _, name, index in sorted(
                (float(importance[name][index]), name, index)
                for name, order in self._order.items()
                for index in order[1:]
            )
        ]

    def of_groups(self, share: float) -> dict[str, list[int]]:
        """The most important elements of each group: that share of it, one at least."""
        return {
            group.name: sorted(self._order[group.name][: max(1, round(share * group.size))])
            for group in self._groups.widths
        }

    def of_model(self, number: int) -> dict[str, list[int]]:
        """All elements but the least important ones of the whole model, that number of them."""
        dropped = set(self._ascending[:number])
        return {
            group.name: [i for i in range(group.size) if (group.name, i) not in dropped]
            for group in self._groups.widths
        }

    def for_cost(self, scope: str, share: float, metric: str) -> dict[str, list[int]]:
        """What stays so that the cost is a share of the whole network's, and as near as can be.

        Args:
            scope: ``group`` keeps the same share of every group; ``model`` has one threshold of
                importance for all of them.
            share: Of the whole network's cost.
            metric: ``flops``, ``params`` or ``acts``.

        Raises:
            UsageError: The smallest widths cost more.
        """
        goal = share * getattr(self._cost.full, metric)

        def kept(position: float) -> dict[str, list[int]]:
            return self.of_groups(1 - position) if scope == 'group' else self.of_model(position)

        # By thousandths of a share, or by single elements: costs fall from one to the next.
        whole = 4096 if scope == 'group' else len(self._ascending)
        step = 1 / whole if scope == 'group' else 1
        low, high = 0, whole
        smallest = getattr(self._count(kept(high * step)), metric)
        if smallest > goal:
            raise UsageError(
                f'keep={share}: the smallest widths leave {smallest / goal * share:.4g} of the '
                f'{metric}'
            )
        while low < high:
            middle = (low + high) // 2
            if getattr(self._count(kept(middle * step)), metric) <= goal:
                high = middle
            else:
                low = middle + 1
        chosen = kept(low * step)
        # What many elements at once leave of the budget goes to single ones.
        while self._fill(chosen, goal, metric):
            pass
        return chosen

    def _fill(self, keep: dict[str, list[int]], goal: float, metric: str) -> bool:
        """Gives groups one element more each where the goal allows; whether it did any."""
        if getattr(self._count(keep), metric) >= 0.99 * goal:
            return False
        missing = [
            (len(keep[name]) / len(order), name, order[len(keep[name])])
            for name, order in self._order.items()
            if len(keep[name]) < len(order)
        ]
        gave = False
        for _, name, element in sorted(missing):
            keep[name] = sorted([*keep[name], element])
            if getattr(self._count(keep), metric) > goal:
                keep[name].remove(element)
            else:
                gave = True
        return gave

    def _count(self, keep: Mapping[str, list[int]]) -> Cost:
        counts = [len(keep[group.name]) for group in self._groups.widths]
        blocks = sum(depth.size for depth in self._groups.depths)
        return self._cost.count([*counts, *[1] * blocks])
