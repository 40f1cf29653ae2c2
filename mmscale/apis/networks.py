"""What a user named, found and built: a network by name, Arch, config or module."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmscale.arch import Arch, get_arch, preset_name
from mmscale.errors import FOREIGN_ERRORS, UsageError, one_line
from mmscale.quiet import quiet_imports

if TYPE_CHECKING:
    from mmengine.config import Config
    from torch import nn

# Side of the input where nothing says another.
_RESOLUTION = 224


def classifier_config(arch: Arch) -> dict[str, Any]:
    """Config of the mmpretrain classifier that is the whole network of an Arch, head included."""
    head = None
    widths = [width for width in (arch.head.hidden_channels, arch.head.num_classes) if width]
    if widths:
        head = dict(
            type='mmpretrain.LinearClsHead',
            num_classes=widths[-1],
            in_channels=arch.feature_channels,
            topk=(1,),
        )
    if len(widths) == 2:
        with quiet_imports():
            from mmscale.models.backbones.blocks import activation_cfg

        head.update(
            type='mmpretrain.StackedLinearClsHead',
            mid_channels=widths[:1],
            act_cfg=activation_cfg(arch.head.act),
        )
    return dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type='mmscale.ArchNet', arch=arch),
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=head,
    )


@contextlib.contextmanager
def _on_meta() -> Iterator[None]:
    """New weights take neither memory nor time; what is computed while building is."""
    import torch
    from torch.overrides import TorchFunctionMode

    weights = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn}

    class OnMeta(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
        ) -> Any:
            kwargs = dict(kwargs or {})
            if func in weights and kwargs.get('device') is None:
                kwargs['device'] = 'meta'
            return func(*args, **kwargs)

    with OnMeta():
        yield


def build_module(config: Mapping, scope: str = 'mmpretrain', meta: bool = False) -> nn.Module:
    """Builds a model or a part of one from its config.

    Args:
        config: Config with a ``type``.
        scope: Package whose registry knows the type.
        meta: Whether the weights need no values, because the module is only counted. A module
            that cannot be built without gets them.

    Raises:
        ValueError: The config cannot be built.
    """
    with quiet_imports():
        from mmengine.registry import MODELS, DefaultScope

        import mmscale.models  # noqa: F401
    reason: Exception | None = None
    for place in (_on_meta(), contextlib.nullcontext()) if meta else (contextlib.nullcontext(),):
        try:
            with place, quiet_imports(), DefaultScope.overwrite_default_scope(scope):
                return MODELS.build(dict(config))
        except FOREIGN_ERRORS as error:
            reason = error
    raise UsageError(f'{config.get("type")} cannot be built: {one_line(reason):.300}') from reason


def build_network(arch: Arch, meta: bool = False) -> nn.Module:
    """Builds the whole network of an Arch: an mmpretrain classifier around an ArchNet."""
    return build_module(classifier_config(arch), meta=meta)


def image_shape(arch: Arch) -> tuple[int, int, int]:
    """Shape of the image that an Arch is made for."""
    return (arch.stem.in_channels, arch.resolution, arch.resolution)


def _pipeline(config: Config) -> list[Mapping]:
    """Transforms of the test images, of datasets in datasets too."""
    dataset = (config.get('test_dataloader') or {}).get('dataset') or {}
    while 'pipeline' not in dataset and 'dataset' in dataset:
        dataset = dataset['dataset']
    return dataset.get('pipeline') or config.get('test_pipeline') or []


def _sides(size: object) -> tuple[int, int] | None:
    """A size of a config, one number or two, as two."""
    if isinstance(size, int) and not isinstance(size, bool):
        return (size, size)
    if isinstance(size, (list, tuple)) and len(size) == 2 and all(type(s) is int for s in size):
        return (size[0], size[1])
    return None


def config_image_shape(config: Config, module: nn.Module) -> tuple[int, int, int]:
    """Shape of the images of a config: the ArchNet's, the pipeline's, the backbone's, or 224.

    Args:
        config: A whole config.
        module: The model built of it.
    """
    model = config.model
    while isinstance(model.get('model'), Mapping):  # of a PrunedModel, for one
        model = model['model']
    preprocessor = config.get('data_preprocessor') or {}
    preprocessor = {**preprocessor, **(model.get('data_preprocessor') or {})}
    backbone = model.get('backbone') or {}
    channels = len(preprocessor.get('mean') or ()) or backbone.get('in_channels') or 3
    built = getattr(module, 'backbone', None)
    arch = getattr(built, 'arch', None)
    if isinstance(arch, Arch):
        return image_shape(arch)
    found = None
    for transform in _pipeline(config):
        kind = str(transform.get('type')).rpartition('.')[2]
        if kind in ('CenterCrop', 'RandomCrop', 'RandomResizedCrop', 'EfficientNetCenterCrop'):
            found = _sides(transform.get('crop_size') or transform.get('scale')) or found
        elif kind == 'Resize':
            sides = _sides(transform.get('scale'))
            # OpenMMLab writes a pair as (width, height).
            found = sides[::-1] if sides else found
        elif kind == 'ResizeToResolution':
            found = _sides(transform.get('resolution')) or found
        elif kind == 'ResizeEdge':
            found = _sides(transform.get('scale')) or found
    found = found or _sides(backbone.get('img_size')) or (_RESOLUTION, _RESOLUTION)
    divisor = preprocessor.get('pad_size_divisor') or 1
    height, width = (-(-side // divisor) * divisor for side in found)
    return (channels, height, width)


def find_arch(source: str) -> tuple[str, Arch]:
    """Name and Arch of a preset or of an Arch's JSON file.

    Raises:
        ValueError: There is neither a preset nor a file of that name, or it is no Arch.
    """
    return preset_name(source) or Path(source).stem, get_arch(source)


@contextlib.contextmanager
def quiet_log() -> Iterator[None]:
    """Keeps MMEngine's log, which goes to the standard output, to errors."""
    from mmengine.logging import MMLogger

    log = MMLogger.get_current_instance()
    level = log.level
    log.setLevel('ERROR')
    try:
        yield
    finally:
        log.setLevel(level)
