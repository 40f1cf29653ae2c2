"""Applies scaling rules to configs of mmpretrain's backbones.

An adapter says which settings of a backbone are its depth, width, heads, groups and resolution;
the rest is common to all. To add one, put a few lines into :data:`ADAPTERS`.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mmscale.apis.model_cost import count_network
from mmscale.apis.networks import Network, build_module
from mmscale.apis.scaling.common import HEAD_WIDTHS, side_or_sides, sides
from mmscale.apis.scaling.model_settings import (
    WIDTH_DIVISOR,
    change,
    feature_channels,
    following,
    get,
    make_groups_whole,
    scaled_backbone,
)
from mmscale.arch import Rounding, Scaling
from mmscale.arch.checks import choice, integer
from mmscale.config_parts import type_name, type_scope
from mmscale.cost import Cost
from mmscale.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

# Backbones that take named archs only, but are a family of Archs.
_AS_ARCH = {
    'ArchNet': 'scale its Arch',
    'EfficientNet': "use backbone=dict(type='mmscale.ArchNet', arch='EfficientNet-B0')",
    'MobileNetV3': "use backbone=dict(type='mmscale.ArchNet', arch='MobileNetV3-Large')",
}
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

# Of mmdet: multipliers of depth and width, told by the second network stage and after the stem.
_CSP = Adapter(
    explicit=lambda net: dict(
        deepen_factor=len(net.stage2[-1].blocks) / net.arch_settings['P5'][1][2],
        widen_factor=next(
            part.in_channels / net.arch_settings['P5'][0][0]
            for part in net.stage1.modules()
            if hasattr(part, 'in_channels')
        ),
    ),
    depth=('deepen_factor',),
    width=('widen_factor',),
)
# Settings of mmdet's backbones that those of mmpretrain do not have.
_UNKNOWN_TO_US = ('dcn', 'plugins')

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
# Backbones of mmdet: those that mmpretrain has too become its, whose weights have the same names.
DETECTION_ADAPTERS: dict[str, Adapter] = {
    'ResNet': replace(_RESNET, removed=('dcn', 'stage_with_dcn', 'plugins', 'pretrained')),
    'RegNet': replace(_REGNET, removed=('arch', 'dcn', 'stage_with_dcn', 'plugins', 'pretrained')),
    'MobileNetV2': _MOBILENET_V2,
    'CSPDarknet': _CSP,
    'CSPNeXt': _CSP,
}


def find_adapter(backbone: Mapping[str, Any], scope: str = 'mmpretrain') -> Adapter:
    """The adapter of a backbone's config.

    Args:
        backbone: The config.
        scope: Package whose backbone it is, if its type does not say one.

    Raises:
        ValueError: There is none.
    """
    scope, name = type_scope(backbone) or scope, type_name(backbone)
    adapters = DETECTION_ADAPTERS if scope == 'mmdet' else ADAPTERS
    if name in _AS_ARCH and scope in ('mmpretrain', 'mmscale'):
        raise UsageError(
            f'backbone.type={name}: its config takes only named archs; {_AS_ARCH[name]} instead'
        )
    if name not in adapters or scope not in ('mmdet', 'mmpretrain', 'mmscale'):
        names = ', '.join(sorted(name for name in adapters if not name.startswith('Scalable')))
        kind = backbone.get('type')
        kind = name if isinstance(kind, type) else kind
        raise UsageError(
            f'backbone.type={kind!r} has no adapter for scaling; there are {names} of {scope}'
        )
    for key in _UNKNOWN_TO_US:
        if backbone.get(key) and key in adapters[name].removed:
            raise UsageError(f'backbone.{key}: there is no adapter for a {name} with it')
    return adapters[name]


def check_head_width(
    backbone: Mapping[str, Any], head_width: str, scope: str = 'mmpretrain'
) -> None:
    """Checks what a user asks of the heads of a backbone.

    Raises:
        ValueError: There is no such choice, no adapter for the backbone, or it has no heads.
    """
    choice('head_width', head_width, HEAD_WIDTHS)
    if find_adapter(backbone, scope).heads is None and head_width != 'kept':
        raise UsageError(f'head_width={head_width}: {backbone["type"]} has no attention heads')


class ScalableConfig:
    """A config to scale.

    Args:
        config: ``dict(type='ResNet', ...)``, or the ``model`` of a config.
        resolution: Side of the base model's input, or its height and width.
        head_width: ``kept``, or ``free`` to become a third narrower or wider.
        scope: Package that knows the types which say none.

    Raises:
        ValueError: There is no adapter for the backbone, it cannot be built, or has no heads
            whose width could be free.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        resolution: int | Sequence[int],
        head_width: str = 'kept',
        scope: str = 'mmpretrain',
    ) -> None:
        self.shape = sides(resolution)
        for side in self.shape:
            integer('resolution', side)
        self.head_width = head_width
        self.scope = scope
        self.config = copy.deepcopy(dict(config))
        self.whole = isinstance(config.get('backbone'), Mapping)
        self.backbone = dict(self.config['backbone']) if self.whole else self.config
        check_head_width(self.backbone, head_width, scope)
        self.adapter = find_adapter(self.backbone, scope)
        self.net = build_module(self.backbone, scope, meta=True)
        self.channels = self.backbone.get('in_channels', 3)
        self.features = self._features(self.net, self.shape) if self.whole else []

    def _features(self, net: nn.Module, shape: tuple[int, int]) -> list[int]:
        return feature_channels(net.to('meta'), self.channels, shape)

    def scaled_backbone(
        self, scaling: Scaling, steps: int = 0
    ) -> tuple[dict[str, Any], tuple[int, int]]:
        """Settings of the scaled backbone, and height and width, so many strides larger."""
        return scaled_backbone(
            self.backbone, self.adapter, scaling, self.shape, self.net, steps, self.head_width
        )

    def one_step_beside(
        self, scaling: Scaling
    ) -> Iterator[tuple[dict[str, Any], tuple[int, int]]]:
        """Scaled backbones of which one number is a step larger or smaller.

        One step of the resolution, of one depth or of one width; only of what is scaled. Widths
        that are tied to heads are not changed, those beside them by up to a quarter.
        """
        adapter = self.adapter
        if scaling.resolution != 1:
            for steps in (-1, 1):
                backbone, shape = self.scaled_backbone(scaling, steps)
                if shape[0] > 0:
                    yield backbone, shape
        changes = [(path, 1) for path in adapter.depth if scaling.depth != 1]
        if scaling.width != 1 and adapter.heads is None:
            changes += [(path, WIDTH_DIVISOR) for path in adapter.width]
        backbone, shape = self.scaled_backbone(scaling)
        for path, step in changes:
            value = get(backbone, path)
            numbers = list(value) if isinstance(value, (list, tuple)) else [value]
            if isinstance(numbers[0], float):
                continue
            for i, number in enumerate(numbers):
                for changed in (number - step, number + step):
                    places = itertools.count()
                    beside = copy.deepcopy(backbone)
                    change(
                        beside, path, lambda n, i=i, c=changed, p=places: c if next(p) == i else n
                    )
                    if adapter.group_width is not None:
                        make_groups_whole(beside, adapter)
                    if changed > 0 and beside != backbone:
                        yield beside, shape
        if scaling.width != 1 and adapter.heads is not None:
            rounding = Rounding('nearest', WIDTH_DIVISOR)
            for path, share in itertools.product(adapter.width[1:], _BESIDE_HEADS):
                beside = copy.deepcopy(backbone)
                change(beside, path, lambda width, s=share: rounding.width(width, 1 + s))
                yield beside, shape

    def config_of(self, backbone: dict[str, Any], shape: tuple[int, int]) -> dict[str, Any]:
        """The config with another backbone, whose features neck and head follow."""
        if not self.whole:
            return backbone
        features = self._features(build_module(backbone, self.scope, meta=True), shape)
        renamed = dict(zip(self.features, features, strict=True))
        config = {**self.config, 'backbone': backbone}
        return following(config, renamed)


@dataclass(frozen=True)
class ScaledModel:
    """A config scaled through its adapter.

    Attributes:
        model: ``dict(type='ResNet', ...)``, or the ``model`` of a config.
        shape: Height and width of its images.
        scope: Package that knows the types which say none.
    """

    model: dict[str, Any]
    shape: tuple[int, int]
    scope: str = 'mmpretrain'

    @property
    def resolution(self) -> int | tuple[int, int]:
        """Side of its images, or height and width where these differ."""
        return side_or_sides(self.shape)

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
        return self._numbers(*find_adapter(self.backbone, self.scope).depth)

    @property
    def widths(self) -> list[int | float]:
        """The width settings of the backbone."""
        return self._numbers(*find_adapter(self.backbone, self.scope).width)

    @property
    def group_widths(self) -> list[int] | None:
        """The group widths of the backbone, or None where it has none."""
        path = find_adapter(self.backbone, self.scope).group_width
        return self._numbers(path) if path else None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of the image that it is made for."""
        return (self.backbone.get('in_channels', 3), *self.shape)

    @cached_property
    def cost(self) -> Cost:
        """Its cost, counted from the module built of it, in the convention ``mmscale``.

        Raises:
            ValueError: It cannot be built, or does not run at this resolution.
        """
        from mmengine.config import Config

        config = Config(dict(model=self.model, default_scope=self.scope))
        network = Network('model', config=config, shape=self.shape)
        return count_network(network, memory=False).cost


def config_cost(config: Mapping[str, Any], resolution: int | Sequence[int] = 224) -> Cost:
    """Cost of a config, counted from the module built of it; see count_module.

    Args:
        config: ``dict(type='ResNet', ...)``, or the ``model`` of a config.
        resolution: Side of the input, or its height and width.

    Raises:
        ValueError: It cannot be built, or does not run at this resolution.
    """
    return ScaledModel(dict(config), sides(resolution)).cost


def scale_config(
    config: Mapping[str, Any],
    scaling: Scaling,
    resolution: int | Sequence[int] = 224,
    head_width: str = 'kept',
    scope: str = 'mmpretrain',
) -> tuple[dict[str, Any], int | tuple[int, int]]:
    """Scales the config of an mmpretrain backbone, or of a model with one.

    Depths are rounded to the nearest number of blocks, widths to multiples of 8 (of their heads
    and groups where they have such), the resolution to a multiple of the stride. Neck and head
    follow where their ``in_channels`` are those of the backbone's features. A ``mmscale.``
    class in the result needs ``custom_imports = dict(imports=['mmscale.models'])``.

    Args:
        config: ``dict(type='ResNet', ...)``, or the ``model`` of a config.
        scaling: The multipliers.
        resolution: Side of the base model's input, in pixels, or its height and width.
        head_width: See :class:`ScalableConfig`.
        scope: Package that knows the types which say none.

    Returns:
        The scaled config and the side of its input, or height and width where these differ.

    Raises:
        ValueError: There is no adapter for the backbone, or it cannot be built.
    """
    base = ScalableConfig(config, resolution, head_width, scope)
    backbone, shape = base.scaled_backbone(scaling)
    return base.config_of(backbone, shape), side_or_sides(shape)
