"""DropoutClsHead: the linear classifier with which EfficientNets are trained."""

from __future__ import annotations

from typing import Any

import torch
from mmpretrain.models import LinearClsHead
from torch import nn

from mmscale.arch.checks import number
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
