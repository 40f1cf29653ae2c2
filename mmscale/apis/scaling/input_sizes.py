"""Sizes in a config's pipelines: how they grow with the input, and that none is left behind."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from mmscale.apis.input_shape import config_input, pipeline_sizes
from mmscale.arch import Arch
from mmscale.config_parts import nested_pipelines, nested_transforms, type_name
from mmscale.errors import UsageError
from mmscale.settings import flat
from mmscale.tables import size_text

if TYPE_CHECKING:
    from mmengine.config import Config

# Which arguments of transforms are sizes in pixels.
_SIZES: dict[str, tuple[str, ...]] = {
    'BatchFixedSizePad': ('size',),
    'BatchSyncRandomResize': ('random_size_range',),
    'CachedMixUp': ('img_scale',),
    'CachedMosaic': ('img_scale',),
    'CenterCrop': ('crop_size',),
    'CenterCropToResolution': ('resolution',),
    'EfficientNetCenterCrop': ('crop_size',),
    'EfficientNetRandomCrop': ('scale',),
    'FixScaleResize': ('scale',),
    'FixShapeResize': ('width', 'height'),
    'LoadRandomResizedCropToResolution': ('resolution',),
    'MixUp': ('img_scale',),
    'Mosaic': ('img_scale',),
    'Pad': ('size',),
    'RandomAffine': ('border',),
    'RandomCenterCropPad': ('crop_size',),
    'RandomChoiceResize': ('scales',),
    'RandomCrop': ('crop_size',),
    'RandomResize': ('scale',),
    'RandomResizedCrop': ('scale',),
    'RandomResizedCropAndInterpolationWithTwoPic': ('size', 'second_size'),
    'RandomResizedCropToResolution': ('resolution',),
    'Resize': ('scale',),
    'ResizeEdge': ('scale',),
    'ResizeShortestEdge': ('scale', 'max_size'),
    'ResizeToResolution': ('resolution',),
}
# Those of MMCV and mmdet say pairs as (width, height), these as (height, width).
_HEIGHT_FIRST = ('EfficientNetRandomCrop', 'RandomCrop', 'RandomResizedCrop')
# What any transform may call a size of images, a known one's other settings too.
_NAMES_OF_SIZES = {
    *(key for keys in _SIZES.values() for key in keys),
    *('image_size', 'img_size', 'input_size', 'output_size', 'target_size'),
}


def resized_pipeline(part: Any, old: tuple[int, int], new: tuple[int, int]) -> Any:
    """A pipeline for another input size, all sizes of which grow or shrink as much.

    Args:
        part: A pipeline, or another part of a config with transforms in it.
        old: Height and width of the input so far.
        new: The ones wanted.
    """
    height, width = (Fraction(after, before) for before, after in zip(old, new, strict=True))

    def grown(value: Any, factors: tuple[Fraction, Fraction]) -> Any:
        if isinstance(value, (list, tuple)):
            pair = factors if len(value) == 2 else [max(factors)] * len(value)
            return type(value)(
                grown(one, factors if isinstance(one, (list, tuple)) else (factor, factor))
                for one, factor in zip(value, pair, strict=True)
            )
        # Shares of the image stay what they are, and so do -1 and 0; borders are below 0.
        is_size = type(value) is int and abs(value) > 1
        return round(value * max(factors)) if is_size else value

    resized = copy.deepcopy(part)
    # From the old to the new: what occurs twice may be one object.
    for before, after in zip(nested_transforms(part), nested_transforms(resized), strict=True):
        name = type_name(before)
        factors = (height, width) if name in _HEIGHT_FIRST else (width, height)
        for key in _SIZES.get(name, ()):
            if before.get(key) is not None:
                after[key] = grown(before[key], factors)
    return resized


def with_resized_pipelines(part: Any, old: tuple[int, int], new: tuple[int, int]) -> Any:
    """A part of a config whose pipelines, wherever they are, are for another input size.

    Args:
        part: The part; it is left as it is.
        old: Height and width of the input so far.
        new: The ones wanted.
    """
    resized = copy.deepcopy(part)
    # From the old to the new: what occurs twice may be one object.
    pairs = zip(nested_pipelines(part), nested_pipelines(resized), strict=True)
    for (_, before, key), (_, after, _) in list(pairs):
        after[key] = resized_pipeline(before[key], old, new)
    return resized


def _unknown_sizes(config: Config, sides: set[int]) -> Iterator[tuple[str, str]]:
    """Yields pipelines and what in them says one of some sides, yet is not known to be a size."""
    settings = {key: part for key, part in config.items() if key != 'model'}
    for place, holder, at in nested_pipelines(settings):
        for transform in nested_transforms(holder[at]):
            name = type_name(transform)
            for key in sorted(_NAMES_OF_SIZES - set(_SIZES.get(name, ()))):
                value = transform.get(key)
                if sides & {one for one in flat(dict(value=value)).values() if type(one) is int}:
                    yield place, f'{name}({key}={value!r:.60})'


def check_sizes(
    before: tuple[Config, Arch | None, tuple[int, int]],
    after: tuple[Config, Arch | None, tuple[int, int]],
    label: str,
) -> None:
    """Checks that all pipelines of a child config give a network the images that it is for.

    A pipeline for other images than the input, as for training alone, has to grow as that does.

    Args:
        before: The config that it was made of; the Arch that its transforms get their size from,
            if they do; and height and width of its input.
        after: The child config, its Arch, and the input wanted.
        label: What the network is called.

    Raises:
        UsageError: One of them does not: a size in it is not known by name.
    """
    (base, base_arch, old), (child, arch, new) = before, after
    way_out = (
        'scale depth or width alone, or name a recipe with a Resize or a crop of MMCV, mmpretrain '
        'or mmdet'
    )

    def check(place: str, made: tuple[int, int], wanted: tuple[int, int]) -> None:
        if made != wanted:
            raise UsageError(
                f'{label} is for images of {size_text(wanted)}, but {place} of its recipe makes '
                f'{size_text(made)}, by transforms whose size is not known by name; {way_out}'
            )

    shape, source = config_input(child, None, arch)
    check(source, (shape[-2], shape[-1]), new)
    sizes, made = pipeline_sizes(base, base_arch), pipeline_sizes(child, arch)
    for place in filter(made.__contains__, sizes):
        ratios = [Fraction(*pair) for pair in zip(new, old, strict=True)]
        wanted = tuple(
            round(side * ratio) for side, ratio in zip(sizes[place], ratios, strict=True)
        )
        # Others are rounded once more, to the aspect of an image or to a divisor.
        nearer = all(
            2 * abs(one - to) <= abs(to - was)
            for one, to, was in zip(made[place], wanted, sizes[place], strict=True)
        )
        if sizes[place] == old or not nearer:
            check(place, made[place], wanted)
    sides = {*old, *(side for size in sizes.values() for side in size)}
    for place, said in _unknown_sizes(base, sides):
        raise UsageError(
            f'{label} is for images of {size_text(new)}, but {place} of its recipe has {said}, '
            f'which is not known by name to be a size; {way_out}'
        )
