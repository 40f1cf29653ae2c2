"""Settings of a model's config: by their path, scaled, and those that follow its backbone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from mmscale.apis.scaling.common import side_or_sides
from mmscale.arch import PYCLS_ROUNDING, Rounding, Scaling
from mmscale.arch.pycls import compatible_widths, scaled_group_width
from mmscale.config_parts import is_pretrained

if TYPE_CHECKING:
    from torch import nn

    from mmscale.apis.scaling.adapters import Adapter

# Widths become multiples of it.
WIDTH_DIVISOR = 8
# Free heads may become narrower or wider than the base model's by this factor.
_HEAD_RANGE = 4 / 3
# Parts that see the features of the backbone where there is no neck.
_HEADS = ('head', 'bbox_head', 'mask_head', 'panoptic_head', 'rpn_head')


def get(settings: Mapping[str, Any], path: str) -> Any:
    """A setting by its path, as ``arch.embed_dims``."""
    for key in path.split('.'):
        settings = settings[key]
    return settings


def change(settings: dict[str, Any], path: str, changed: Callable[[Any], Any]) -> None:
    """Changes a setting, or each of its numbers."""
    *parents, key = path.split('.')
    for parent in parents:
        settings = settings[parent]
    value = settings[key]
    is_list = isinstance(value, (list, tuple))
    settings[key] = [changed(number) for number in value] if is_list else changed(value)


def starts_from_weights(backbone: Mapping[str, Any]) -> bool:
    """Whether the config of a backbone names weights that it starts from."""
    settings = backbone.get('init_cfg')
    settings = settings if isinstance(settings, (list, tuple)) else [settings]
    return bool(backbone.get('pretrained')) or any(map(is_pretrained, settings))


def from_scratch(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a backbone that other weights do not fit: it starts at random, none frozen."""
    found = dict(backbone)
    if starts_from_weights(backbone):
        found.pop('pretrained', None)
        found.pop('init_cfg', None)
        if found.get('frozen_stages', -1) >= 0:
            found['frozen_stages'] = -1
        if found.get('norm_eval'):
            found['norm_eval'] = False
    return found


def feature_channels(backbone: nn.Module, channels: int, shape: tuple[int, int]) -> list[int]:
    """Channels of the feature maps (N, C, H, W), tokens (N, L, C) or vectors (N, C).

    Args:
        backbone: On torch's meta device.
        channels: Of the images.
        shape: Height and width of the images.
    """
    import torch

    backbone.eval()
    with torch.no_grad():
        features = backbone(torch.zeros(1, channels, *shape, device='meta'))
    features = features if isinstance(features, (list, tuple)) else [features]
    return [feature.shape[1 if feature.dim() == 4 else -1] for feature in features]


def following(config: Mapping[str, Any], renamed: Mapping[int, int]) -> dict[str, Any]:
    """A model's config whose neck or heads have the features' new numbers of channels.

    What comes after the first neck with ``in_channels`` sees the channels of that neck alone, but
    for the head of a classifier, whose neck may keep them.

    Args:
        config: The model's config.
        renamed: The new number by the old one.
    """
    found = dict(config)
    necks = config.get('neck')
    necks = list(necks) if isinstance(necks, (list, tuple)) else [necks]
    first = next((i for i, neck in enumerate(necks) if _has_channels(neck)), None)
    if first is not None:
        necks[first] = _renamed(necks[first], renamed)
        found['neck'] = necks if isinstance(config['neck'], (list, tuple)) else necks[0]
    for key in ('head',) if first is not None else _HEADS:
        if key in config:
            found[key] = _renamed(config[key], renamed)
    return found


def _has_channels(part: object) -> bool:
    return isinstance(part, Mapping) and 'in_channels' in part


def _renamed(part: Any, renamed: Mapping[int, int]) -> Any:
    if isinstance(part, (list, tuple)):
        return [_renamed(one, renamed) for one in part]
    if not _has_channels(part):
        return part
    value = part['in_channels']
    if isinstance(value, (list, tuple)):
        return {**part, 'in_channels': [renamed.get(one, one) for one in value]}
    return {**part, 'in_channels': renamed.get(value, value)}


def scaled_heads(
    width: int, heads: int, multiplier: float, head_width: str = 'kept'
) -> tuple[int, int]:
    """Number and width of heads whose product is nearest to a multiple of the width.

    Heads keep their width; or if that is free, of equally near ones it is that most like it.
    """
    head = width // heads
    if head_width == 'kept':
        return max(1, round(heads * multiplier)), head
    step = math.gcd(head, WIDTH_DIVISOR)
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


def make_groups_whole(settings: dict[str, Any], adapter: Adapter) -> None:
    """Makes the widths multiples of the group width, so that the settings say what is built."""
    group = get(settings, adapter.group_width)
    ratio = Fraction(settings['bottleneck_ratio'])
    for path in adapter.width:
        change(settings, path, lambda w: compatible_widths(w, ratio, group, PYCLS_ROUNDING)[0])


def scaled_backbone(
    backbone: Mapping[str, Any],
    adapter: Adapter,
    scaling: Scaling,
    shape: tuple[int, int],
    net: nn.Module,
    steps: int,
    head_width: str,
) -> tuple[dict[str, Any], tuple[int, int]]:
    """The scaled settings of a backbone and height and width of its images.

    `net` is the base model; `steps` more strides are added to the height.
    """
    stride = adapter.stride(net)
    rounding = Rounding('nearest', WIDTH_DIVISOR, stride)
    scaled_shape = _scaled_shape(shape, scaling.resolution, steps, rounding)
    explicit = adapter.explicit(net)

    def deepen(blocks: float) -> float:
        is_factor = isinstance(blocks, float)
        return blocks * scaling.depth if is_factor else rounding.depth(blocks, scaling.depth)

    for path in adapter.depth:
        change(explicit, path, deepen)
    multiplier = scaling.width
    widths = adapter.width
    if adapter.heads is not None:
        first, *widths = widths
        heads, width = get(explicit, adapter.heads), get(explicit, first)
        base = heads[0] if isinstance(heads, (list, tuple)) else heads
        number, size = scaled_heads(width, base, multiplier, head_width)
        change(explicit, adapter.heads, lambda count: round(count * number / base))
        change(explicit, first, lambda _: number * size)
        multiplier = number * size / width  # the other widths keep their ratio to this one

    def widen(channels: float) -> float:
        if isinstance(channels, float):
            return channels * multiplier
        return channels if multiplier == 1 else rounding.width(channels, multiplier)

    for path in widths:
        change(explicit, path, widen)
    if adapter.group_width is not None:
        grown = scaling.width if scaling.group_width is None else scaling.group_width
        if grown != 1:
            change(explicit, adapter.group_width, lambda group: scaled_group_width(group, grown))
        make_groups_whole(explicit, adapter)
    if adapter.window is not None:
        grown = scaled_shape[0] / shape[0]
        change(explicit, adapter.window, lambda side: max(1, round(side * grown)))
    if adapter.resolution is not None:
        change(explicit, adapter.resolution, lambda _: side_or_sides(scaled_shape))
    scaled = {key: value for key, value in backbone.items() if key not in adapter.removed}
    scaled.update(explicit)
    if scaling.depth != 1 or scaling.width != 1:
        scaled = from_scratch(scaled)
    if adapter.type is not None:
        scaled['type'] = adapter.type
    return scaled, scaled_shape


def _scaled_shape(
    shape: tuple[int, int], multiplier: float, steps: int, rounding: Rounding
) -> tuple[int, int]:
    """Height and width that are both scaled by one factor, if they are scaled at all."""
    if multiplier == 1 and not steps:
        return shape
    stride = rounding.resolution_divisor
    height = rounding.resolution(shape[0], multiplier) + steps * stride
    # Their ratio is that of the base model, as far as multiples of the stride have it.
    return height, rounding.resolution(shape[1], height / shape[0]) if height > 0 else height
