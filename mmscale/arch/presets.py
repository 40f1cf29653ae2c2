"""Named networks: every published size of the families, and ScaleNet's in both width rules."""

from __future__ import annotations

import difflib
import inspect
import os
import re
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatch
from functools import cache, partial
from pathlib import Path

from mmscale.arch.arch import Arch, Block, Head, SqueezeExcite, Stem
from mmscale.arch.checks import check_keys, choice
from mmscale.arch.families import efficientnet, mobilenet_v2, mobilenet_v3, regnet, resnet
from mmscale.arch.json_files import read_json
from mmscale.arch.rounding import Scaling
from mmscale.arch.scaling import apply_scaling
from mmscale.errors import UsageError

# Kernels per network stage of the published base model S0 (ScaleNet's released configs).
_SCALENET_KERNELS = ((5,), (5,), (7, 7, 5, 3), (5, 5), (7, 7), (7, 5, 7), (5,))
_SCALENET_CHANNELS = (16, 32, 40, 80, 96, 192, 320)
_SCALENET_STRIDES = (1, 2, 2, 2, 1, 2, 1)

SCALENET_STRATEGY = (
    Scaling(),
    Scaling(1.04, 1.04, 1.14),
    Scaling(1.36, 1.20, 1.355),
    Scaling(1.40, 1.40, 1.58),
    Scaling(1.653, 1.534, 2.042),
    Scaling(1.848, 1.688, 2.378),
)


def _scalenet_base() -> Arch:
    stages = []
    in_channels = 32
    for i, kernels in enumerate(_SCALENET_KERNELS):
        stage = []
        for j, kernel in enumerate(kernels):
            hidden = in_channels * (1 if i == 0 else 6)
            stride = _SCALENET_STRIDES[i] if j == 0 else 1
            stage.append(
                Block(
                    kind='dsconv' if i == 0 else 'mbconv',
                    kernel=kernel,
                    stride=stride,
                    in_channels=in_channels,
                    hidden_channels=hidden,
                    out_channels=_SCALENET_CHANNELS[i],
                    groups=hidden,
                    se=SqueezeExcite(channels=hidden // 4),
                    residual='identity' if j > 0 else 'none',
                )
            )
            in_channels = _SCALENET_CHANNELS[i]
        stages.append(tuple(stage))
    return Arch(224, Stem(32), tuple(stages), Head(channels=1280, num_classes=1000))


def _scalenet(stage: int, rule: str) -> Arch:
    return apply_scaling(_scalenet_base(), SCALENET_STRATEGY[stage], rule)


# Width, depth, resolution (authors' code, tensorflow/tpu).
_EFFICIENTNETS = {
    'B0': (1.0, 1.0, 224),
    'B1': (1.0, 1.1, 240),
    'B2': (1.1, 1.2, 260),
    'B3': (1.2, 1.4, 300),
    'B4': (1.4, 1.8, 380),
    'B5': (1.6, 2.2, 456),
    'B6': (1.8, 2.6, 528),
    'B7': (2.0, 3.1, 600),
    'Lite0': (1.0, 1.0, 224),
    'Lite1': (1.0, 1.1, 240),
    'Lite2': (1.1, 1.2, 260),
    'Lite3': (1.2, 1.4, 280),
    'Lite4': (1.4, 1.8, 300),
}

# Depth, w0, wa, wm, group width: X and Y of the model zoo of pycls (arXiv 2003.13678), Z of
# ClassyVision.
_REGNETS = {
    'X-200MF': (13, 24, 36.44, 2.49, 8),
    'X-400MF': (22, 24, 24.48, 2.54, 16),
    'X-600MF': (16, 48, 36.97, 2.24, 24),
    'X-800MF': (16, 56, 35.73, 2.28, 16),
    'X-1.6GF': (18, 80, 34.01, 2.25, 24),
    'X-3.2GF': (25, 88, 26.31, 2.25, 48),
    'X-4.0GF': (23, 96, 38.65, 2.43, 40),
    'X-6.4GF': (17, 184, 60.83, 2.07, 56),
    'X-8.0GF': (23, 80, 49.56, 2.88, 120),
    'X-12GF': (19, 168, 73.36, 2.37, 112),
    'X-16GF': (22, 216, 55.59, 2.1, 128),
    'X-32GF': (23, 320, 69.86, 2.0, 168),
    'Y-200MF': (13, 24, 36.44, 2.49, 8),
    'Y-400MF': (16, 48, 27.89, 2.09, 8),
    'Y-600MF': (15, 48, 32.54, 2.32, 16),
    'Y-800MF': (14, 56, 38.84, 2.4, 16),
    'Y-1.6GF': (27, 48, 20.71, 2.65, 24),
    'Y-3.2GF': (21, 80, 42.63, 2.66, 24),
    'Y-4.0GF': (22, 96, 31.41, 2.24, 64),
    'Y-6.4GF': (25, 112, 33.22, 2.27, 72),
    'Y-8.0GF': (17, 192, 76.82, 2.19, 56),
    'Y-12GF': (19, 168, 73.36, 2.37, 112),
    'Y-16GF': (18, 200, 106.23, 2.48, 112),
    'Y-32GF': (20, 232, 115.89, 2.53, 232),
    'Z-500MF': (21, 16, 10.7, 2.51, 4),
    'Z-4GF': (28, 48, 14.5, 2.226, 8),
}

# The input sides at which they were published, where that is not 224.
_RESOLUTIONS = {'Z-4GF': 256}

_BUILDERS: dict[str, Callable[[], Arch]] = {
    **{f'scalenet-s{j}': partial(_scalenet, j, 'retraining') for j in range(6)},
    **{f'scalenet-s{j}-search': partial(_scalenet, j, 'search') for j in range(6)},
    **{
        f'EfficientNet-{name}': partial(efficientnet, *numbers, lite=name.startswith('Lite'))
        for name, numbers in _EFFICIENTNETS.items()
    },
    'MobileNetV2': mobilenet_v2,
    'MobileNetV3-Large': partial(mobilenet_v3, 'large'),
    'MobileNetV3-Small': partial(mobilenet_v3, 'small'),
    **{
        f'RegNet{name}': partial(
            regnet, name[0].lower(), *numbers, resolution=_RESOLUTIONS.get(name, 224)
        )
        for name, numbers in _REGNETS.items()
    },
    **{f'ResNet-{depth}': partial(resnet, depth) for depth in (18, 34, 50, 101, 152)},
    **{
        f'ResNeXt-{depth}-32x{width}d': partial(resnet, depth, groups=32, base_width=width)
        for depth, width in ((50, 4), (101, 4), (101, 8), (152, 4))
    },
}

# timm's networks that differ from their preset: the preset, padding, eps, and the channels of the
# head's convolution. Some have weights of TensorFlow's authors; the published width of RegNetZ's
# head is not known, and timm's is another.
_TIMM_VARIANTS: dict[str, tuple[str, str, float, int | None]] = {
    **{
        f'tf_efficientnet_{size.lower()}': (f'EfficientNet-{size}', 'same', 1e-3, None)
        for size in _EFFICIENTNETS
    },
    'tf_mobilenetv3_large_100': ('MobileNetV3-Large', 'same', 1e-3, None),
    'tf_mobilenetv3_small_100': ('MobileNetV3-Small', 'same', 1e-3, None),
    'regnetz_005': ('RegNetZ-500MF', 'half', 1e-5, 1024),
    'regnetz_040': ('RegNetZ-4GF', 'half', 1e-5, 0),
    'regnetz_040_h': ('RegNetZ-4GF', 'half', 1e-5, 1536),
}

_FAMILIES: dict[str, Callable[..., Arch]] = {
    'efficientnet': efficientnet,
    'mobilenet_v2': mobilenet_v2,
    'mobilenet_v3': mobilenet_v3,
    'regnet': regnet,
    'resnet': resnet,
}


def _key(name: str) -> str:
    """Spellings of one name have one key: those of timm, torchvision and mmpretrain too.

    ResNet-50, resnet50 and timm's resnet50.a1_in1k; RegNetY-4.0GF, RegNetY-4GF, timm's
    regnety_040 and torchvision's regnet_y_4gf; ResNeXt-50 and resnext50_32x4d.
    """
    key = re.sub(r'\.(\w*in\d+k\w*|seer)$', '', name.lower())  # the weights' tag in timm
    key = re.sub(r'(?<=\d)_(?=\d+gf$)', '.', key)  # 3_2gf in torchvision
    key = re.sub(r'\.0gf$', 'gf', re.sub(r'[-_ ]', '', key))
    if found := re.fullmatch(r'(regnet[xy])(\d{3})', key):  # hundreds of millions in timm
        hundreds = int(found[2])
        size = f'{hundreds}00mf' if hundreds < 10 else f'{hundreds / 10:g}gf'
        return f'{found[1]}{size}'
    if re.fullmatch(r'resnext\d{2,3}', key):
        return f'{key}32x4d'
    return re.sub(r'^(mobilenetv(2|3large|3small))(100|1\.0)$', r'\1', key)


_NAMES = {_key(name): name for name in (*_BUILDERS, *_TIMM_VARIANTS)}
_SOME_PRESETS = f'{", ".join(list(_BUILDERS)[:16])} and {len(_BUILDERS) - 16} more'


def preset_names() -> tuple[str, ...]:
    """Names that :func:`get_arch` knows, as they are published."""
    return tuple(_BUILDERS)


def list_archs(pattern: str = '*') -> list[str]:
    """Names of the networks that are known by name.

    Args:
        pattern: As of file names, in any case: ``'RegNetZ-*'``.

    Example:
        >>> list_archs('scalenet-s[01]')
        ['scalenet-s0', 'scalenet-s1']
    """
    if not isinstance(pattern, str):
        raise UsageError(f'pattern={pattern!r:.60} must be a text, as regnety-*')
    return [name for name in _BUILDERS if fnmatch(name.lower(), pattern.lower())]


def preset_name(source: str) -> str | None:
    """The published spelling of a preset's name in any case, or None if it is not one.

    Of timm's networks that differ from their preset it is timm's, see :func:`timm_variants`.
    """
    return _NAMES.get(_key(source))


def timm_variants() -> dict[str, str]:
    """Networks of timm that differ from a preset in padding, eps or head: name to preset."""
    return {name: preset for name, (preset, *_) in _TIMM_VARIANTS.items()}


@cache
def _preset(name: str) -> Arch:
    if name in _BUILDERS:
        return _BUILDERS[name]()
    preset, padding, eps, head_channels = _TIMM_VARIANTS[name]
    arch = with_numerics(_preset(preset), padding, eps)
    if head_channels is None:
        return arch
    return replace(arch, head=replace(arch.head, channels=head_channels))


def with_numerics(arch: Arch, padding: str, eps: float) -> Arch:
    """An Arch with another padding, and another eps of its norm layers."""
    both = dict(padding=padding, eps=eps)
    stages = tuple(tuple(replace(block, **both) for block in stage) for stage in arch.stages)
    head = replace(arch.head, eps=eps)
    return replace(arch, stem=replace(arch.stem, **both), stages=stages, head=head)


def _from_family(owner: str, parameters: dict) -> Arch:
    arguments = dict(parameters)
    family = choice(f'{owner}: family', arguments.pop('family'), _FAMILIES)
    build = _FAMILIES[family]
    known = inspect.signature(build).parameters
    required = [name for name, parameter in known.items() if parameter.default is parameter.empty]
    check_keys(f'{owner}: {family}', arguments, known, required)
    try:
        return build(**arguments)
    except (TypeError, ValueError) as error:
        reason = str(error) if family in str(error) else f'family={family}: {error}'
        raise UsageError(f'{owner}: {reason}') from None


def get_arch(source: str | Path | dict | Arch) -> Arch:
    """Finds an Arch by preset name, JSON file, mapping, or returns the Arch given.

    Args:
        source: A name of :func:`preset_names` in any case, and as timm, torchvision and
            mmpretrain spell it (``scalenet-s0`` ... ``scalenet-s5`` by the retraining width
            rule, with ``-search`` by the search's; ``regnety_040``; ``tf_efficientnet_b0`` with
            that network's padding and eps, ``regnetz_040`` with its head), the path of a JSON
            file, the mapping in one, or an Arch. A mapping is an Arch's, or ``family`` and the
            parameters of that function of :mod:`mmscale.arch.families`:
            ``dict(family='regnet', kind='z', depth=21, w0=16, wa=10.7, wm=2.51, group_width=4)``.

    Raises:
        ValueError: Nothing is given, there is neither a preset nor a file of that name, or the
            file's content is not an Arch.

    Example:
        >>> get_arch('scalenet-s1').depths
        (2, 2, 5, 3, 3, 4, 2)
    """
    if isinstance(source, Arch):
        return source
    if source is None:
        # What the base configs leave to be set.
        raise UsageError(
            'arch=None: set model.backbone.arch to the JSON file of an Arch, to its content or to '
            f'a preset; presets are {_SOME_PRESETS}'
        )
    if not isinstance(source, (str, os.PathLike)):
        if isinstance(source, dict) and 'family' in source:
            return _from_family('arch', source)
        return Arch.from_json(source)
    name = preset_name(str(source))
    if name is not None:
        return _preset(name)
    if os.path.isfile(source):
        content = read_json(source)
        if isinstance(content, dict) and 'family' in content:
            return _from_family(str(source), content)
        return Arch.from_json(source)
    if Path(source).suffix == '.json':
        raise UsageError(f'arch={str(source)!r:.200} is not a file; it must hold an Arch')
    near = difflib.get_close_matches(_key(str(source)), _NAMES, n=4, cutoff=0.5)
    raise UsageError(
        f'arch={str(source)!r:.200} is neither a file nor a preset; '
        + (
            f'near names are {", ".join(_NAMES[key] for key in near)}'
            if near
            else f'presets are {_SOME_PRESETS}'
        )
    )
