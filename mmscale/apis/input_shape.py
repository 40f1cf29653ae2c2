"""Input of a config's model: what the config's own pipeline makes of an image."""

from __future__ import annotations

import contextlib
import copy
import math
import random
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from mmscale.arch import Arch
from mmscale.config_parts import (
    innermost_datasets,
    nested_datasets,
    nested_pipelines,
    type_name,
)
from mmscale.errors import FOREIGN_ERRORS, UsageError, one_line
from mmscale.quiet import quiet_imports
from mmscale.settings import flat

if TYPE_CHECKING:
    from mmengine.config import Config
    from torch import nn

# Side of the input where nothing says another.
ASSUMED_SIDE = 224

# Where a config says how images are made, and what that is called in messages.
_LOADERS = {
    'test': 'the test pipeline',
    'val': 'the validation pipeline',
    'train': 'the training pipeline',
}
# Sides of images that a dataset has, whatever is done to them.
_SIDES_OF_DATASETS = {'CIFAR10': 32, 'CIFAR100': 32, 'FashionMNIST': 28, 'MNIST': 28}
# Transforms that do not change the size of an image, and need more than one.
_LEFT_OUT = re.compile(r'(.*Load|Pack|Collect|DefaultFormat|FilterAnnotations).*')
# Transforms of transforms that are done one after the other, and those of which one is chosen.
_IN_A_ROW = ('Compose', 'KeyMapper', 'ProposalBroadcaster', 'RandomApply', 'TransformBroadcaster')
# Largest number in a pipeline that may be a size in pixels, and the least side of a blank image.
_LARGEST_SIDE = 8192
_SMALLEST_BLANK = 256


class InputShape(NamedTuple):
    """Shape of one input of a model, and what says so.

    Attributes:
        shape: Channels, height and width of an image; the length alone of a text.
        source: What says so, for messages.
    """

    shape: tuple[int, ...]
    source: str


def core_of(module: nn.Module | None) -> nn.Module | None:
    """The module with the backbone, out of those around it, such as a ``DMSModel``."""
    while not hasattr(module, 'backbone'):
        inner = getattr(module, 'detector', None) or getattr(module, 'model', None)
        if not hasattr(inner, 'parameters'):
            break
        module = inner
    return module


def model_config(config: Mapping) -> Mapping:
    """The config of the model with the backbone, out of those around it."""
    model = config['model']
    while 'backbone' not in model:
        inner = model.get('detector') or model.get('model')
        if not isinstance(inner, Mapping):
            break
        model = inner
    return model


def _straight(pipeline: Any) -> Iterator[Any]:
    """The transforms that one image goes through: of alternatives the first or largest one."""
    for transform in [pipeline] if isinstance(pipeline, Mapping) else pipeline:
        if not isinstance(transform, Mapping):  # built already
            yield transform
            continue
        name, inner = type_name(transform), transform.get('transforms')
        if name in _IN_A_ROW:
            yield from _straight(inner)
        elif name == 'RandomChoice':
            yield from _straight(inner[0])
        elif name == 'TestTimeAug':
            for alternatives in inner:
                yield from _straight(alternatives[0])
        elif name in ('RandomResize', 'RandomChoiceResize'):
            yield _largest_resize(transform)
        else:
            yield transform


def _largest_resize(transform: Mapping) -> dict[str, Any]:
    """A resize to one size in the place of one to a random size."""
    scales = transform.get('scales') or transform['scale']
    if isinstance(scales, list):
        scales = max(scales, key=lambda scale: math.prod(_pair(scale) or scale))
    resize = dict(type=transform.get('resize_type', 'Resize'), scale=scales)
    for settings in (transform, transform.get('resize_cfg') or {}):
        if 'keep_ratio' in settings:
            resize['keep_ratio'] = settings['keep_ratio']
    return resize


def _blank_size(transforms: list[Any]) -> tuple[int, int]:
    """Height and width of an image to try a pipeline with.

    It has the aspect ratio of the last size that keeps the image's, and is larger than any crop.
    """
    width = height = 1
    numbers = []
    for transform in transforms:
        if not isinstance(transform, Mapping):
            continue
        others = dict(transform)
        scale = transform.get('scale')
        is_pair = isinstance(scale, (list, tuple)) and len(scale) == 2
        if is_pair and transform.get('keep_ratio') and all(0 < s < math.inf for s in scale):
            width, height = map(round, scale)
            del others['scale']
        numbers += [value for value in flat(others).values() if type(value) is int]
    largest = max((n for n in numbers if n <= _LARGEST_SIDE), default=1)
    grown = -(-max(largest, _SMALLEST_BLANK) // min(width, height))
    return height * grown, width * grown


def _size_of(image: Any) -> tuple[int, int]:
    """Height and width of an image, as an array, of PIL or as a tensor."""
    size = getattr(image, 'size', None)
    if isinstance(size, tuple):
        return (size[1], size[0])
    if isinstance(image, (list, tuple)):  # several views of one
        return _size_of(image[0])
    if hasattr(image, 'ndim') and hasattr(image, 'permute'):
        return (image.shape[-2], image.shape[-1])
    return (image.shape[0], image.shape[1])


def _built(transforms: list[Mapping], scope: str, arch: Arch | None) -> Iterator[tuple[str, Any]]:
    """Name and transform of those that images of one dataset go through; None cannot be built."""
    with quiet_imports():
        from mmengine.registry import TRANSFORMS, DefaultScope

        import mmscale.datasets  # noqa: F401
    for config in transforms:
        name = type_name(config) if isinstance(config, Mapping) else type(config).__name__
        if _LEFT_OUT.fullmatch(name):
            continue
        if not isinstance(config, Mapping):
            yield name, config
            continue
        transform = None
        in_scope = DefaultScope.overwrite_default_scope(scope)
        with contextlib.suppress(*FOREIGN_ERRORS), in_scope, quiet_imports():
            transform = TRANSFORMS.build(copy.deepcopy(dict(config)))
        # As InputResolutionHook will.
        if arch is not None and getattr(transform, 'resolution', 0) is None:
            transform.resolution = arch.resolution
        yield name, transform


@contextlib.contextmanager
def _same_chance() -> Iterator[None]:
    """What is drawn is always the same, and changes nothing outside.

    OpenCV works without threads of its own: processes that are forked later would wait for them.
    """
    import cv2
    import numpy as np

    states, threads = (random.getstate(), np.random.get_state()), cv2.getNumThreads()
    random.seed(0)
    np.random.seed(0)
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        cv2.setNumThreads(threads)


def _made(
    transforms: list[tuple[str, Any]], size: tuple[int, int], channels: int
) -> tuple[tuple[int, int], list[str]]:
    """Height and width of what transforms make of a blank image, and which of them could not."""
    import numpy as np

    image = np.zeros((*size, 1 if channels == 1 else 3), np.uint8)
    results: dict[str, Any] = dict(img=image, img_shape=size, ori_shape=size)
    failed = []
    with _same_chance(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for name, transform in transforms:
            try:
                results = transform(dict(results)) or results
            except FOREIGN_ERRORS:
                failed.append(name)
    return _size_of(results['img']), failed


def _pipeline_size(
    dataset: object,
    pipeline: Any,
    scope: str,
    channels: int,
    arch: Arch | None,
    innermost: Mapping | None = None,
) -> tuple[tuple[int, int], str] | None:
    """Height and width of the images that a dataset gives, if it says a size, and what does so.

    Args:
        dataset: Config of a dataset, whatever is nested in it.
        pipeline: Its pipeline, if the dataset has none.
        scope: Package that knows the transforms.
        channels: Of the images.
        arch: Of the ArchNet, whose resolution some transforms take.
        innermost: The dataset in it whose images they are; by default its first.
    """
    parts = {id(part): part for part in nested_datasets(dataset)}.values()
    first = innermost if innermost is not None else next(iter(parts), None)
    around = [part for part in parts if any(one is first for one in nested_datasets(part))]
    configs = list(_straight([t for part in around for t in part.get('pipeline') or ()]))
    configs = configs or list(_straight(pipeline or ()))
    side = _SIDES_OF_DATASETS.get(type_name(first))
    transforms = list(_built(configs, scope, arch))
    if side is not None:
        size, failed = _made(transforms, (side, side), channels)
        return size, f' of images of {type_name(first)}'
    if not transforms:
        return None
    height, width = _blank_size(configs)
    size, failed = _made(transforms, (height, width), channels)
    if size != _made(transforms, (2 * height, 2 * width), channels)[0]:
        return None  # it is the image that says it
    without = f' (without {", ".join(failed)}, which needs more than an image)' if failed else ''
    return size, without


def _pair(size: object) -> tuple[int, int] | None:
    """A side or two of a model's config, (height, width), as two."""
    sides = size if isinstance(size, (list, tuple)) else (size, size)
    if len(sides) == 2 and all(type(side) is int and side > 0 for side in sides):
        return (sides[0], sides[1])
    return None


def _preprocessor(config: Mapping, model: Mapping) -> dict[str, Any]:
    """Settings of the preprocessor, which some models have inside another."""
    found: dict[str, Any] = {}
    for part in (config, config['model'], model):
        inner = part.get('data_preprocessor')
        while isinstance(inner, Mapping):
            found.update(inner)
            inner = inner.get('data_preprocessor')
    return found


def _length(config: Mapping) -> int | None:
    """Tokens of a text, of a language model; None of any other."""
    shape = config['model'].get('input_shape')  # of a DMSModel
    if isinstance(shape, (list, tuple)) and len(shape) == 1:
        return shape[0]
    for phase in _LOADERS:
        dataset = (config.get(f'{phase}_dataloader') or {}).get('dataset')
        for part in innermost_datasets(dataset):
            length = part.get('length')
            if type(length) is int and not part.get('pipeline'):
                return length
    return None


def _channels(config: Mapping, arch: Arch | None) -> int:
    """Channels of a config's images."""
    if arch is not None:
        return arch.stem.in_channels
    model = model_config(config)
    mean = _preprocessor(config, model).get('mean')
    channels = len(mean) if isinstance(mean, (list, tuple)) else None
    return channels or (model.get('backbone') or {}).get('in_channels') or 3


def _image_size(
    config: Mapping, backbone: nn.Module | None, channels: int, arch: Arch | None
) -> tuple[tuple[int, int], str]:
    """Height and width of the images that reach the preprocessor, and what says so."""
    scope = config.get('default_scope') or 'mmpretrain'
    for phase, source in _LOADERS.items():
        dataset = (config.get(f'{phase}_dataloader') or {}).get('dataset')
        pipeline = config.get(f'{phase}_pipeline')
        try:
            found = _pipeline_size(dataset, pipeline, scope, channels, arch)
        except FOREIGN_ERRORS as error:
            raise UsageError(f'{source} cannot be read: {one_line(error):.300}') from error
        if found is not None:
            return found[0], source + found[1]
    if arch is not None:
        return (arch.resolution, arch.resolution), 'the Arch'
    shape = config['model'].get('input_shape')
    if isinstance(shape, (list, tuple)) and len(shape) == 3:
        return (shape[1], shape[2]), 'model.input_shape'
    settings = model_config(config).get('backbone') or {}
    for size in (settings.get('img_size'), getattr(backbone, 'img_size', None)):
        pair = _pair(size)
        if pair is not None:
            return pair, 'the backbone'
    return (ASSUMED_SIDE, ASSUMED_SIDE), 'an assumption'


def pipeline_sizes(config: Config, arch: Arch | None = None) -> dict[str, tuple[int, int]]:
    """Height and width of what every pipeline of a config makes, of those that say a size.

    Those of all datasets of all loaders, and those that the config has besides: for test-time
    augmentation, in hooks, ...

    Args:
        config: A whole config.
        arch: Of its ArchNet, if an ``InputResolutionHook`` sets transforms to its resolution.

    Returns:
        The sizes by what the pipelines are called, for messages.

    Raises:
        UsageError: One of them cannot be read.
    """
    scope = config.get('default_scope') or 'mmpretrain'
    channels = _channels(config, arch)
    places: list[tuple[str, Any, Any, Any]] = []
    loaders_first = sorted(config.items(), key=lambda item: not item[0].endswith('_dataloader'))
    for key, part in loaders_first:
        if key.endswith('_dataloader'):
            dataset = part.get('dataset') if isinstance(part, Mapping) else None
            inner = {id(one): one for one in innermost_datasets(dataset)}.values()
            name = _LOADERS.get(key.removesuffix('_dataloader'), key)
            for i, one in enumerate(inner, start=1):
                place = name if len(inner) == 1 else f'{name} of dataset {i}'
                places.append((place, dataset, None, one))
        elif key != 'model':
            for name, holder, at in nested_pipelines({key: part}):
                places.append((name, None, holder[at], None))
    sizes = {}
    for name, dataset, pipeline, one in places:
        try:
            found = _pipeline_size(dataset, pipeline, scope, channels, arch, one)
        except FOREIGN_ERRORS as error:
            raise UsageError(f'{name} cannot be read: {one_line(error):.300}') from error
        if found is not None:
            sizes[name] = found[0]
    return sizes


def config_input(config: Config, module: nn.Module | None, arch: Arch | None = None) -> InputShape:
    """Shape of what a config's model gets, and what says so.

    The config's test pipeline is run on blank images, so that it is what the pipeline makes:
    loading, annotations and packing are left out, random sizes are the largest, of alternatives
    it is the first. A pair with ``keep_ratio`` gets an image of that aspect: RetinaNet's
    (1333, 800), which MMCV means as (width, height), is 800 high and 1333 wide. Where no pipeline
    says a size, the Arch, the model or the backbone does, or 224 is assumed. Last the model's
    preprocessor pads.

    Args:
        config: A whole config, in either of MMEngine's styles.
        module: The model built of it; without, an Arch and a backbone say nothing of themselves.
        arch: The Arch of its ArchNet, where that is not built.
    """
    length = _length(config)
    if length is not None:
        return InputShape((length,), 'the length of the texts')
    model = model_config(config)
    backbone = getattr(core_of(module), 'backbone', None)
    built = getattr(backbone, 'arch', None)
    arch = built if isinstance(built, Arch) else arch
    channels = _channels(config, arch)
    size, source = _image_size(config, backbone, channels, arch)
    preprocessor = _preprocessor(config, model)
    divisor = preprocessor.get('pad_size_divisor') or 1
    height, width = (-(-side // divisor) * divisor for side in size)
    return InputShape((channels, height, width), source)
