"""ArchClassifier: an image classifier whose head has the widths of its Arch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmpretrain.models import ImageClassifier
from torch import nn

from mmscale.models.heads import build_head
from mmscale.registry import MODELS


@MODELS.register_module()
class ArchClassifier(ImageClassifier):
    """mmpretrain's ``ImageClassifier`` around an :class:`ArchNet`, for any Arch.

    The head's config leaves out ``in_channels`` (and ``mid_channels`` of a head with a hidden
    layer), which follow from the Arch: so a config trains every network of a space, whatever the
    widths that the space chooses.

    Args:
        backbone: Config of the ArchNet, or the module.
        head: Config of the head, or the module.
        **kwargs: As for ``ImageClassifier``.

    Raises:
        ValueError: The head's config does not fit the Arch.
    """

    def __init__(
        self,
        backbone: dict | nn.Module,
        head: dict | nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone=backbone, **kwargs)
        if isinstance(head, Mapping):
            arch = self.backbone.arch
            head = build_head(head, arch.feature_channels, arch.head.hidden_channels)
        self.head = head
