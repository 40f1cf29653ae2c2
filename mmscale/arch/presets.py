"""Named networks: the family that ScaleNet published, in both width rules."""

from __future__ import annotations

import os
from pathlib import Path

from mmscale.arch.arch import Arch, Block, Head, SqueezeExcite, Stem
from mmscale.arch.scaling import Scaling, apply_scaling

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


def preset_names() -> tuple[str, ...]:
    """Names that :func:`get_arch` knows."""
    names = [f'scalenet-s{j}' for j in range(len(SCALENET_STRATEGY))]
    return (*names, *(f'{name}-search' for name in names))


def get_arch(source: str | Path | dict | Arch) -> Arch:
    """Finds an Arch by preset name, JSON file, mapping, or returns the Arch given.

    Args:
        source: A name of :func:`preset_names` in any case (``scalenet-s0`` ... ``scalenet-s5``
            by the retraining width rule, with ``-search`` by the search's), the path of a JSON
            file, the mapping in one, or an Arch.

    Raises:
        ValueError: Nothing is given, there is neither a preset nor a file of that name, or the
            file's content is not an Arch.
    """
    if isinstance(source, Arch):
        return source
    if source is None:
        # What the base configs leave to be set.
        raise ValueError(
            'arch=None: set model.backbone.arch to the JSON file of an Arch, to its content or to '
            f'a preset; presets are {", ".join(preset_names())}'
        )
    if not isinstance(source, (str, os.PathLike)):
        return Arch.from_json(source)
    name = str(source).lower()
    if name in preset_names():
        stage = int(name.removeprefix('scalenet-s').removesuffix('-search'))
        rule = 'search' if name.endswith('-search') else 'retraining'
        return apply_scaling(_scalenet_base(), SCALENET_STRATEGY[stage], rule)
    if Path(source).is_file():
        return Arch.from_json(source)
    raise ValueError(
        f'arch={str(source)!r} is neither a file nor a preset; presets are '
        f'{", ".join(preset_names())}'
    )
