"""ArchClassifier: an image classifier whose head has the widths of its Arch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from mmpretrain.models import ImageClassifier
from mmpretrain.registry import MODELS as CLASSIFIER_PARTS
from torch import nn

from mmscale.arch import Arch
from mmscale.errors import UsageError
from mmscale.registry import MODELS


def _with_widths(head: Mapping[str, Any], arch: Arch) -> dict[str, Any]:
    """The config of a head with the widths of an Arch.

    Raises:
        UsageError: The config says other widths, or its type has another number of layers.
    """
    widths: dict[str, Any] = {'in_channels': arch.feature_channels}
    hidden = arch.head.hidden_channels
    if hidden:
        widths['mid_channels'] = [hidden]
    for key, width in widths.items():
        if head.get(key, width) != width:
            raise UsageError(
                f'model.head.{key}={head[key]!r:.60}: leave it out, that of the Arch is {width}'
            )
    cls = CLASSIFIER_PARTS.get(head.get('type'))
    if cls is not None and ('mid_channels' in inspect.signature(cls).parameters) != bool(hidden):
        raise UsageError(
            f'model.head.type={head["type"]!r:.60}: the hidden layer of the Arch has {hidden} '
            'channels; StackedLinearClsHead has such a layer, LinearClsHead none'
        )
    return {**head, **widths}


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
            head = CLASSIFIER_PARTS.build(_with_widths(head, self.backbone.arch))
        self.head = head
