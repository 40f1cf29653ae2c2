"""Cost reports of networks by name, Arch file or config, and the runtime model of a device."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmscale.apis.command_line import read_config
from mmscale.arch import Arch, get_arch, preset_name
from mmscale.cost import (
    Latency,
    LatencyModel,
    ModuleCost,
    ToolDifference,
    count,
    count_module,
    count_parts,
    explain_arch_difference,
    explain_difference,
    measure_latency,
    this_device,
)
from mmscale.quiet import quiet_imports

if TYPE_CHECKING:
    from mmengine.config import Config
    from torch import nn

# Side of the input where nothing says another.
_RESOLUTION = 224
_ACTS = {'relu': 'ReLU', 'relu6': 'ReLU6', 'hswish': 'HSwish', 'silu': 'SiLU'}


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
        head.update(
            type='mmpretrain.StackedLinearClsHead',
            mid_channels=widths[:1],
            act_cfg=dict(type=_ACTS[arch.head.act]),
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
        except (
            AssertionError,
            AttributeError,
            ImportError,
            LookupError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            reason = error
    message = ' '.join(str(reason).split())
    raise ValueError(f'{config.get("type")} cannot be built: {message:.300}') from reason


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


def cost_report(
    source: str,
    resolution: int | None = None,
    convention: str = 'mmscale',
    batch: int = 1,
    latency: str | None = None,
    memory: bool = False,
    options: Sequence[str] = (),
) -> dict[str, Any]:
    """Cost of a network as plain data.

    An Arch is counted by arithmetic; the model of a config is built and run without computing.

    Args:
        source: A preset's name, an Arch's JSON file, or a config (``.py``) with a ``model``.
        resolution: Side of the square image; by default what the network is made for.
        convention: See :func:`mmscale.cost.count`.
        batch: Images that latency and memory are of.
        latency: Device to time a batch on, ``cpu`` or ``cuda``.
        memory: Whether to count memory also for an Arch, which builds it.
        options: Overrides of the config, ``KEY=VALUE`` each.

    Returns:
        ``name, resolution, flops, params, acts, convention, parts``, and ``mmengine`` (what its
        analyzer says, and why); where asked for or a config, ``memory``; for a config
        ``uncounted``; where asked for, ``latency``.

    Raises:
        ValueError: There is no such network or device, or a value is not allowed.
        UsageError: The config cannot be read.
    """
    for key, value in (('resolution', resolution), ('batch', batch)):
        if value is not None and (type(value) is not int or value < 1):
            raise ValueError(f'{key}={value!r} must be an integer of 1 or more')
    if latency is not None:
        this_device(latency, batch)
    if Path(source).suffix == '.py':
        return _config_report(source, resolution, convention, batch, latency, options)
    if options:
        raise ValueError(f'--cfg-options {" ".join(options)}: {source} is no config')
    name, arch = find_arch(source)
    if resolution is not None:
        arch = replace(arch, resolution=resolution)
    parts = [asdict(part) for part in count_parts(arch, convention)]
    report = {
        'name': name,
        'resolution': arch.resolution,
        **asdict(count(arch, convention)),
        'convention': convention,
        'parts': [part | part.pop('cost') for part in parts],
        'mmengine': _as_json(explain_arch_difference(arch, convention)),
    }
    if memory:
        counted = count_module(build_network(arch, meta=True), image_shape(arch), batch=batch)
        report['memory'] = _memory(counted)
    if latency is not None:
        measured = measure_latency(build_network(arch), image_shape(arch), latency, batch)
        report['latency'] = asdict(measured)
    return report


def _config_report(
    source: str,
    resolution: int | None,
    convention: str,
    batch: int,
    latency: str | None,
    options: Sequence[str],
) -> dict[str, Any]:
    config = read_config(source, options)
    if not isinstance(config.get('model'), Mapping):
        raise ValueError(f'{source}: the config has no model')
    with _quiet_log():
        return _model_report(config, Path(source).stem, resolution, convention, batch, latency)


@contextlib.contextmanager
def _quiet_log() -> Iterator[None]:
    """Keeps MMEngine's log, which goes to the standard output, to errors."""
    from mmengine.logging import MMLogger

    log = MMLogger.get_current_instance()
    level = log.level
    log.setLevel('ERROR')
    try:
        yield
    finally:
        log.setLevel(level)


def _model_report(
    config: Config,
    name: str,
    resolution: int | None,
    convention: str,
    batch: int,
    latency: str | None,
) -> dict[str, Any]:
    scope = config.get('default_scope', 'mmpretrain')
    model = build_module(config.model, scope, meta=True)
    shape = config_image_shape(config, model)
    if resolution is not None:
        shape = (shape[0], resolution, resolution)
    try:
        counted = count_module(model, shape, convention=convention, batch=batch)
    except ValueError:  # it may need numbers on its way
        model = build_module(config.model, scope)
        counted = count_module(model, shape, convention=convention, batch=batch)
    try:
        mmengine = _as_json(explain_difference(model, shape, convention=convention))
    except ValueError as error:
        mmengine = {'text': f"MMEngine's FlopAnalyzer: {error}"}
    report = {
        'name': name,
        'resolution': shape[1] if shape[1] == shape[2] else list(shape[1:]),
        **asdict(counted.cost),
        'convention': convention,
        'parts': [{'name': part, **asdict(cost)} for part, cost in counted.by_part.items()],
        'memory': _memory(counted),
        'uncounted': list(counted.uncounted),
        'mmengine': mmengine,
    }
    if latency is not None:
        measured = measure_latency(build_module(config.model, scope), shape, latency, batch)
        report['latency'] = asdict(measured)
    return report


def _as_json(difference: ToolDifference) -> dict[str, Any]:
    return {**asdict(difference), 'text': str(difference)}


def _memory(counted: ModuleCost) -> dict[str, Any]:
    return {
        'batch': counted.batch,
        'peak_bytes_inference': counted.peak_bytes_inference,
        'activation_bytes_training': counted.activation_bytes_training,
    }


def fit_latency(
    archs: Mapping[str, Arch],
    device: str = 'cpu',
    batch: int = 1,
    dtype: str = 'float32',
    train: bool = False,
    warmup: int = 3,
    repeats: int = 30,
    on_measured: Callable[[str, Latency], None] = lambda name, latency: None,
    measure: Callable[..., Latency] = measure_latency,
) -> LatencyModel:
    """Measures networks on this device and fits the runtime model to them.

    Args:
        archs: The networks by name, three or more; the wider their costs and the more different
            their ways of scaling, the better the model.
        device: See :func:`mmscale.cost.measure_latency`, as are the next ones.
        batch: Images in a batch.
        dtype: Type of the numbers.
        train: Whether to time training steps.
        warmup: Runs that are not timed.
        repeats: Timed runs of each network.
        on_measured: Called after each network.
        measure: What measures a network.

    Raises:
        ValueError: A setting is not allowed, or there are too few networks.
    """
    setting = this_device(device, batch, dtype, train)
    costs = [count(arch) for arch in archs.values()]
    # Refused before the first network is measured, not after the last.
    LatencyModel.fit(costs, [1.0] * len(costs), setting)
    times = []
    for name, arch in archs.items():
        latency = measure(
            build_network(arch), image_shape(arch), device, batch, dtype, train, warmup, repeats
        )
        on_measured(name, latency)
        times.append(latency.median_ms)
    return LatencyModel.fit(costs, times, setting, list(archs))
