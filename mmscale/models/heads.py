"""Heads of classifiers: one with dropout, and any of mmpretrain's in the widths of an Arch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from mmpretrain.models import LinearClsHead
from mmpretrain.registry import MODELS as CLASSIFIER_PARTS
from torch import nn

from mmscale.arch.checks import number
from mmscale.errors import UsageError
from mmscale.registry import MODELS


@MODELS.register_module()
class DropoutClsHead(LinearClsHead):
    """mmpretrain's ``LinearClsHead``, which has no dropout, with dropout before it.

    Args:
        dropout: Probability with which a feature is dropped while training, in [0, 1).
        **kwargs: Arguments of ``LinearClsHead``.

    Raises:
        ValueError: If ``dropout`` is out of its range.
    """

    def __init__(self, dropout: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dropout = nn.Dropout(number('dropout', dropout, least=0, below=1))

    def pre_logits(self, feats: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """The last features (N, C), while training without some."""
        return self.dropout(super().pre_logits(feats))


def build_head(head: Mapping[str, Any], channels: int | None, hidden: int) -> nn.Module:
    """Builds a head whose config may leave out the widths that follow from the network.

    Args:
        head: Its config.
        channels: Channels of the features, ``in_channels``; None where something else makes them.
        hidden: Width of its hidden linear layer, ``mid_channels``; 0 for none.

    Raises:
        UsageError: The config says other widths, or its type has another number of layers.
    """
    widths: dict[str, Any] = {} if channels is None else {'in_channels': channels}
    if hidden:
        widths['mid_channels'] = [hidden]
    for key, width in widths.items():
        if head.get(key, width) != width:
            raise UsageError(
                f'model.head.{key}={head[key]!r:.60}: leave it out, it follows from the backbone: '
                f'{width}'
            )
    cls = CLASSIFIER_PARTS.get(head.get('type'))
    taken = {} if cls is None else inspect.signature(cls).parameters
    if cls is not None and ('mid_channels' in taken) != bool(hidden):
        raise UsageError(
            f'model.head.type={head["type"]!r:.60}: the hidden layer of the network has {hidden} '
            'channels; StackedLinearClsHead has such a layer, LinearClsHead none'
        )
    takes_all = any(part.kind is part.VAR_KEYWORD for part in taken.values())
    if not takes_all and 'in_channels' not in taken:
        widths.pop('in_channels', None)
    return CLASSIFIER_PARTS.build({**head, **widths})
