"""mmpretrain's backbones whose depths and widths their own configs cannot say, spelled out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmpretrain.models.backbones import MobileNetV2, RegNet, ResNet

from mmscale.arch.checks import integer
from mmscale.errors import UsageError
from mmscale.registry import MODELS


def _checked(name: str, values: Sequence[int], length: int | None = None) -> tuple[int, ...]:
    values = tuple(integer(f'{name}[{i}]', value) for i, value in enumerate(values))
    if not values or length not in (None, len(values)):
        raise UsageError(f'{name}={values!r:.60} must have {length} entries, one a network stage')
    return values


@MODELS.register_module()
class ScalableResNet(ResNet):
    """mmpretrain's ResNet with any number of blocks; its weights have the same names.

    Args:
        stage_blocks: Blocks of each network stage.
        depth: Decides the kind of block, as in mmpretrain: basic for 18 and 34, else bottleneck.
        **kwargs: As in mmpretrain.

    Raises:
        ValueError: A number of blocks is not allowed.
    """

    def __init__(self, stage_blocks: Sequence[int], depth: int = 50, **kwargs: Any) -> None:
        stages = kwargs.get('num_stages', 4)
        if depth in ResNet.arch_settings:  # else mmpretrain says what is wrong
            block, _ = ResNet.arch_settings[depth]
            self.arch_settings = {depth: (block, _checked('stage_blocks', stage_blocks, stages))}
        super().__init__(depth, **kwargs)


@MODELS.register_module()
class ScalableMobileNetV2(MobileNetV2):
    """mmpretrain's MobileNetV2 with any number of blocks; its weights have the same names.

    Args:
        stage_blocks: Blocks of each of the seven network stages.
        **kwargs: As in mmpretrain.

    Raises:
        ValueError: A number of blocks is not allowed.
    """

    def __init__(self, stage_blocks: Sequence[int], **kwargs: Any) -> None:
        counts = _checked('stage_blocks', stage_blocks, len(MobileNetV2.arch_settings))
        self.arch_settings = [
            [ratio, channels, blocks, stride]
            for (ratio, channels, _, stride), blocks in zip(
                MobileNetV2.arch_settings, counts, strict=True
            )
        ]
        super().__init__(**kwargs)


@MODELS.register_module()
class ScalableRegNet(RegNet):
    """mmpretrain's RegNet by widths and depths; its weights have the same names.

    Args:
        stage_widths: Width of each network stage; made divisible by the group width.
        stage_blocks: Blocks of each network stage.
        group_width: Channels of a group.
        bottleneck_ratio: Width inside a block over its output width.
        **kwargs: As in mmpretrain.

    Raises:
        ValueError: A width or a number of blocks is not allowed.
    """

    def __init__(
        self,
        stage_widths: Sequence[int],
        stage_blocks: Sequence[int],
        group_width: int,
        bottleneck_ratio: float = 1.0,
        **kwargs: Any,
    ) -> None:
        self._widths = _checked('stage_widths', stage_widths)
        self._blocks = _checked('stage_blocks', stage_blocks, len(self._widths))
        (group_width,) = _checked('group_width', [group_width])
        # What mmpretrain derives the widths from, which here are given.
        unused = dict.fromkeys(('w0', 'wa', 'wm', 'depth'))
        arch = dict(**unused, group_w=group_width, bot_mul=bottleneck_ratio)
        super().__init__(arch, **kwargs)

    def generate_regnet(self, *_: Any) -> tuple[None, int]:
        """The number of network stages, and no widths of single blocks."""
        return None, len(self._widths)

    def get_stages_from_blocks(self, widths: None) -> tuple[list[int], list[int]]:
        """The widths and depths that were given."""
        del widths
        return list(self._widths), list(self._blocks)
