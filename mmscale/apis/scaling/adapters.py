"""Applies scaling rules to configs of mmpretrain's backbones.

An adapter says which settings of a backbone are its depth, width, heads, groups and resolution;
the rest is common to all. To add one, put a few lines into :data:`ADAPTERS`.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mmscale.apis.networks import build_module
from mmscale.apis.scaling.common import HEAD_WIDTHS
from mmscale.arch import PYCLS_ROUNDING, Rounding, Scaling
from mmscale.arch.checks import choice, integer
from mmscale.arch.pycls import compatible_widths, scaled_group_width
from mmscale.config_parts import type_name, type_scope
from mmscale.cost import Cost, count_module
from mmscale.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

# Backbones that take named archs only, but are a family of Archs.
_AS_ARCH = {
    'ArchNet': 'scale its Arch',
    'EfficientNet': "use backbone=dict(type='mmscale.ArchNet', arch='EfficientNet-B0')",
    'MobileNetV3': "use backbone=dict(type='mmscale.ArchNet', arch='MobileNetV3-Large')",
}
_WIDTH_DIVISOR = 8
# Free heads may become narrower or wider than the base model's by this factor.
_HEAD_RANGE = 4 / 3
# What has no heads may differ from its ratio to what has by these shares, to meet a budget.
_BESIDE_HEADS = [share / 32 for share in range(-8, 9) if share]


@dataclass(frozen=True)
class Adapter:
    """Which settings of a backbone say what.

    Settings are named by their path, ``arch.embed_dims``. Each holds a number, or one number per
    network stage.

    Attributes:
        explicit: From the built base model to the settings that replace its own: they say in
            numbers what a named arch says by name.
        depth: Numbers of blocks.
        width: Channels; they become multiples of 8. A fraction (a width multiplier) is not
            rounded.
        heads: Numbers of attention heads of the first of the `width` settings. Heads keep their
            width, or if that is free about their width, and `width` becomes a multiple of them.
        group_width: Channels of a group; `width`, times the setting ``bottleneck_ratio``, becomes
            a multiple of it, as the network itself would make it.
        resolution: Side of the input, where the backbone has to know it.
        window: Sides that grow with the resolution.
        stride: The resolution becomes a multiple of it: the total stride or the patch size.
        type: Class that takes the settings, where the base model's own does not.
        removed: Settings of the base model that the explicit ones stand for.
    """

    explicit: Callable[[Any], dict[str, Any]]
    depth: tuple[str, ...]
    width: tuple[str, ...]
    heads: str | None = None
    group_width: str | None = None
    resolution: str | None = None
    window: str | None = None
    stride: Callable[[Any], int] = lambda net: 32
    type: str | None = None
    removed: tuple[str, ...] = ()


_RESNET = Adapter(
    explicit=lambda net: dict(
        stage_blocks=list(net.stage_blocks),
        base_channels=net.base_channels,
        stem_channels=net.stem_channels,
    ),
    depth=('stage_blocks',),
    width=('base_channels', 'stem_channels'),
    type='mmscale.ScalableResNet',
)
_REGNET = Adapter(
    explicit=lambda net: dict(
        stage_widths=list(net.stage_widths),
        stage_blocks=list(net.stage_blocks),
        group_width=max(net.group_widths),
        bottleneck_ratio=net.bottleneck_ratio[0],
    ),
    # The stem keeps its width, as in pycls.
    depth=('stage_blocks',),
    width=('stage_widths',),
    group_width='group_width',
    type='mmscale.ScalableRegNet',
    removed=('arch',),
)
_MOBILENET_V2 = Adapter(
    explicit=lambda net: dict(
        stage_blocks=[blocks for _, _, blocks, _ in net.arch_settings],
        widen_factor=float(net.widen_factor),
    ),
    depth=('stage_blocks',),
    width=('widen_factor',),
    type='mmscale.ScalableMobileNetV2',
)

ADAPTERS: dict[str, Adapter] = {
    'VisionTransformer': Adapter(
        explicit=lambda net: dict(
            arch={
                key: net.arch_settings[key]
                for key in ('embed_dims', 'num_layers', 'num_heads', 'feedforward_channels')
            },
            img_size=net.img_size[0],
        ),
        depth=('arch.num_layers',),
        width=('arch.embed_dims', 'arch.feedforward_channels'),
        heads='arch.num_heads',
        resolution='img_size',
        stride=lambda net: net.patch_embed.projection.stride[0],
    ),
    'SwinTransformer': Adapter(
        explicit=lambda net: dict(
            arch=copy.deepcopy(net.arch_settings),
            window_size=net.stages[0].blocks[0].attn.window_size,
            img_size=0,
        ),
        depth=('arch.depths',),
        width=('arch.embed_dims',),
        heads='arch.num_heads',
        resolution='img_size',
        # Else a larger feature map would be padded to the next multiple of the window.
        window='window_size',
    ),
    'ConvNeXt': Adapter(
        explicit=lambda net: dict(arch=dict(depths=list(net.depths), channels=list(net.channels))),
        depth=('arch.depths',),
        width=('arch.channels',),
    ),
    'ResNet': _RESNET,
    'ScalableResNet': _RESNET,
    'RegNet': _REGNET,
    'ScalableRegNet': _REGNET,
    'MobileNetV2': _MOBILENET_V2,
    'ScalableMobileNetV2': _MOBILENET_V2,
}


def find_adapter(backbone: Mapping[str, Any]) -> Adapter:
    """The adapter of a backbone's config.

    Raises:
        ValueError: There is none.
    """
    scope, name = type_scope(backbone), type_name(backbone)
    if name in _AS_ARCH and scope in ('', 'mmpretrain', 'mmscale'):
        raise UsageError(
            f'backbone.type={name}: its config takes only named archs; {_AS_ARCH[name]} instead'
        )
    if name not in ADAPTERS or scope not in ('', 'mmpretrain', 'mmscale'):
        names = ', '.join(sorted(name for name in ADAPTERS if not name.startswith('Scalable')))
        raise UsageError(
            f'backbone.type={backbone.get("type")!r} has no adapter for scaling; there are {names}'
        )
    return ADAPTERS[name]


def check_head_width(backbone: Mapping[str, Any], head_width: str) -> None:
    """Checks what a user asks of the heads of a backbone.

    Raises:
        ValueError: There is no such choice, no adapter for the backbone, or it has no heads.
    """
    choice('head_width', head_width, HEAD_WIDTHS)
    if find_adapter(backbone).heads is None and head_width != 'kept':
        raise UsageError(f'head_width={head_width}: {backbone["type"]} has no attention heads')


def _get(settings: Mapping[str, Any], path: str) -> Any:
    for key in path.split('.'):
        settings = settings[key]
    return settings


def _change(settings: dict[str, Any], path: str, change: Callable[[Any], Any]) -> None:
    """Changes a setting, or each of its numbers."""
    *parents, key = path.split('.')
    for parent in parents:
        settings = settings[parent]
    value = settings[key]
    is_list = isinstance(value, (list, tuple))
    settings[key] = [change(number) for number in value] if is_list else change(value)


def _scaled_heads(
    width: int, heads: int, multiplier: float, head_width: str = 'kept'
) -> tuple[int, int]:
    """Number and width of heads whose product is nearest to a multiple of the width.

    Heads keep their width; or if that is free, of equally near ones it is that most like it.
    """
    head = width // heads
    if head_width == 'kept':
        return max(1, round(heads * multiplier)), head
    step = math.gcd(head, _WIDTH_DIVISOR)
    smallest, largest = math.ceil(head / _HEAD_RANGE), math.floor(head * _HEAD_RANGE)
    candidates = [
        (max(1, number), size)
        for size in range(-(-smallest // step) * step, largest + 1, step)
        for number in (
            math.floor(width * multiplier / size),
            math.ceil(width * multiplier / size),
        )
    ]
    return min(
        candidates,
        key=lambda pair: (abs(pair[0] * pair[1] - width * multiplier), abs(pair[1] - head)),
    )


def _make_groups_whole(settings: dict[str, Any], adapter: Adapter) -> None:
    """Makes the widths multiples of the group width, so that the settings say what is built."""
    group = _get(settings, adapter.group_width)
    ratio = Fraction(settings['bottleneck_ratio'])
    for path in adapter.width:
        _change(settings, path, lambda w: compatible_widths(w, ratio, group, PYCLS_ROUNDING)[0])


def _scaled_backbone(
    backbone: Mapping[str, Any],
    scaling: Scaling,
    resolution: int,
    net: nn.Module,
    steps: int,
    head_width: str,
) -> tuple[dict[str, Any], int]:
    """The scaled settings of a backbone and its resolution; `net` is the base model.

    `steps` more strides are added to the resolution.
    """
    adapter = find_adapter(backbone)
    stride = adapter.stride(net)
    rounding = Rounding('nearest', _WIDTH_DIVISOR, stride)
    scaled_resolution = rounding.resolution(resolution, scaling.resolution) + steps * stride
    explicit = adapter.explicit(net)
    for path in adapter.depth:
        _change(explicit, path, lambda number: rounding.depth(number, scaling.depth))
    multiplier = scaling.width
    widths = adapter.width
    if adapter.heads is not None:
        first, *widths = widths
        heads, width = _get(explicit, adapter.heads), _get(explicit, first)
        base = heads[0] if isinstance(heads, (list, tuple)) else heads
        number, size = _scaled_heads(width, base, multiplier, head_width)
        _change(explicit, adapter.heads, lambda count: round(count * number / base))
        _change(explicit, first, lambda _: number * size)
        multiplier = number * size / width  # the other widths keep their ratio to this one

    def widen(channels: float) -> float:
        if isinstance(channels, float):
            return channels * multiplier
        return channels if multiplier == 1 else rounding.width(channels, multiplier)

    for path in widths:
        _change(explicit, path, widen)
    if adapter.group_width is not None:
        grown = scaling.width if scaling.group_width is None else scaling.group_width
        if grown != 1:
            _change(explicit, adapter.group_width, lambda group: scaled_group_width(group, grown))
        _make_groups_whole(explicit, adapter)
    if adapter.window is not None:
        grown = scaled_resolution / resolution
        _change(explicit, adapter.window, lambda side: max(1, round(side * grown)))
    if adapter.resolution is not None:
        _change(explicit, adapter.resolution, lambda _: scaled_resolution)
    scaled = {key: value for key, value in backbone.items() if key not in adapter.removed}
    scaled.update(explicit)
    if adapter.type is not None:
        scaled['type'] = adapter.type
    return scaled, scaled_resolution


def _feature_channels(backbone: nn.Module, channels: int, resolution: int) -> list[int]:
    """Channels of the feature maps (N, C, H, W), tokens (N, L, C) or vectors (N, C)."""
    import torch

    backbone.eval()
    with torch.no_grad():
        features = backbone(torch.zeros(1, channels, resolution, resolution, device='meta'))
    return [feature.shape[1 if feature.dim() == 4 else -1] for feature in features]


def _follow(part: Any, renamed: Mapping[int, int]) -> Any:
    """Neck or head whose input channels follow those of the features."""
    if isinstance(part, (list, tuple)):
        return [_follow(one, renamed) for one in part]
    if not isinstance(part, Mapping) or 'in_channels' not in part:
        return part
    value = part['in_channels']
    if isinstance(value, (list, tuple)):
        return {**part, 'in_channels': [renamed.get(one, one) for one in value]}
    return {**part, 'in_channels': renamed.get(value, value)}


class ScalableConfig:
    """A config to scale.

    Args:
        config: ``dict(type='ResNet', ...)``, or the ``model`` of a config.
        resolution: Side of the base model's input.
        head_width: ``kept``, or ``free`` to become a third narrower or wider.

    Raises:
        ValueError: There is no adapter for the backbone, it cannot be built, or has no heads
            whose width could be free.
    """

    def __init__(
        self, config: Mapping[str, Any], resolution: int, head_width: str = 'kept'
    ) -> None:
        self.resolution = integer('resolution', resolution)
        self.head_width = head_width
        self.config = copy.deepcopy(dict(config))
        self.whole = isinstance(config.get('backbone'), Mapping)
        self.backbone = dict(self.config['backbone']) if self.whole else self.config
        check_head_width(self.backbone, head_width)
        self.net = build_module(self.backbone, meta=True)
        self.channels = self.backbone.get('in_channels', 3)
        self.features = self._features(self.net, resolution) if self.whole else []

    def _features(self, net: nn.Module, resolution: int) -> list[int]:
        return _feature_channels(net.to('meta'), self.channels, resolution)

    def scaled_backbone(self, scaling: Scaling, steps: int = 0) -> tuple[dict[str, Any], int]:
        """Settings of the scaled backbone and the resolution, so many strides larger."""
        return _scaled_backbone(
            self.backbone, scaling, self.resolution, self.net, steps, self.head_width
        )

    def one_step_beside(self, scaling: Scaling) -> Iterator[tuple[dict[str, Any], int]]:
        """Scaled backbones of which one number is a step larger or smaller.

        One step of the resolution, of one depth or of one width; only of what is scaled. Widths
        that are tied to heads are not changed, those beside them by up to a quarter.
        """
        adapter = find_adapter(self.backbone)
        if scaling.resolution != 1:
            for steps in (-1, 1):
                backbone, resolution = self.scaled_backbone(scaling, steps)
                if resolution > 0:
                    yield backbone, resolution
        changes = [(path, 1) for path in adapter.depth if scaling.depth != 1]
        if scaling.width != 1 and adapter.heads is None:
            changes += [(path, _WIDTH_DIVISOR) for path in adapter.width]
        backbone, resolution = self.scaled_backbone(scaling)
        for path, step in changes:
            value = _get(backbone, path)
            numbers = list(value) if isinstance(value, (list, tuple)) else [value]
            if isinstance(numbers[0], float):
                continue
            for i, number in enumerate(numbers):
                for changed in (number - step, number + step):
                    places = itertools.count()
                    beside = copy.deepcopy(backbone)
                    _change(
                        beside, path, lambda n, i=i, c=changed, p=places: c if next(p) == i else n
                    )
                    if adapter.group_width is not None:
                        _make_groups_whole(beside, adapter)
                    if changed > 0 and beside != backbone:
                        yield beside, resolution
        if scaling.width != 1 and adapter.heads is not None:
            rounding = Rounding('nearest', _WIDTH_DIVISOR)
            for path, share in itertools.product(adapter.width[1:], _BESIDE_HEADS):
                beside = copy.deepcopy(backbone)
                _change(beside, path, lambda width, s=share: rounding.width(width, 1 + s))
                yield beside, resolution

    def config_of(self, backbone: dict[str, Any], resolution: int) -> dict[str, Any]:
        """The config with another backbone, whose features neck and head follow."""
        if not self.whole:
            return backbone
        features = self._features(build_module(backbone, meta=True), resolution)
        renamed = dict(zip(self.features, features, strict=True))
        config = {**self.config, 'backbone': backbone}
        for part in ('neck', 'head'):
            if part in config:
                config[part] = _follow(config[part], renamed)
        return config


@dataclass(frozen=True)
class ScaledModel:
    """A config scaled through its adapter.

    Attributes:
        model: ``dict(type='ResNet', ...)``, or the ``model`` of a config.
        resolution: Side of its input.
    """

    model: dict[str, Any]
    resolution: int

    @property
    def backbone(self) -> Mapping[str, Any]:
        """The backbone, which the model may be itself."""
        return self.model.get('backbone', self.model)

    def _numbers(self, *paths: str) -> list[int | float]:
        """Settings of the backbone, those of a base model that does not say them left out."""
        numbers: list[int | float] = []
        for path in paths:
            value: Any = self.backbone
            for key in path.split('.'):
                value = value.get(key) if isinstance(value, Mapping) else None
            if value is not None:
                numbers += value if isinstance(value, (list, tuple)) else [value]
        return numbers

    @property
    def depths(self) -> list[int]:
        """The depth settings of the backbone."""
        return self._numbers(*find_adapter(self.backbone).depth)

    @property
    def widths(self) -> list[int | float]:
        """The width settings of the backbone."""
        return self._numbers(*find_adapter(self.backbone).width)

    @property
    def group_widths(self) -> list[int] | None:
        """The group widths of the backbone, or None where it has none."""
        path = find_adapter(self.backbone).group_width
        return self._numbers(path) if path else None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of the image that it is made for."""
        return (self.backbone.get('in_channels', 3), self.resolution, self.resolution)

    @cached_property
    def cost(self) -> Cost:
        """Its cost, counted from the module built of it, in the convention ``mmscale``.

        Raises:
            ValueError: It cannot be built, or does not run at this resolution.
        """
        module = build_module(self.model, meta=True)
        return count_module(module, self.image_shape, memory=False).cost


def config_cost(config: Mapping[str, Any], resolution: int = 224) -> Cost:
    """Cost of a config, counted from the module built of it; see count_module.

    Args:
        config: ``dict(type='ResNet', ...)``, or the ``model`` of a config.
        resolution: Side of the input.

    Raises:
        ValueError: It cannot be built, or does not run at this resolution.
    """
    return ScaledModel(dict(config), resolution).cost


def scale_config(
    config: Mapping[str, Any],
    scaling: Scaling,
    resolution: int = 224,
    head_width: str = 'kept',
) -> tuple[dict[str, Any], int]:
    """Scales the config of an mmpretrain backbone, or of a model with one.

    Depths are rounded to the nearest number of blocks, widths to multiples of 8 (of their heads
    and groups where they have such), the resolution to a multiple of the stride. Neck and head
    follow where their ``in_channels`` are those of the backbone's features. A ``mmscale.``
    class in the result needs ``custom_imports = dict(imports=['mmscale.models'])``.

    Args:
        config: ``dict(type='ResNet', ...)``, or the ``model`` of a config.
        scaling: The multipliers.
        resolution: Side of the base model's input, in pixels.
        head_width: See :class:`ScalableConfig`.

    Returns:
        The scaled config and the side of its input.

    Raises:
        ValueError: There is no adapter for the backbone, or it cannot be built.
    """
    base = ScalableConfig(config, resolution, head_width)
    backbone, scaled_resolution = base.scaled_backbone(scaling)
    return base.config_of(backbone, scaled_resolution), scaled_resolution
