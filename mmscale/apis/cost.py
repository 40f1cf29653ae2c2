"""Cost reports of networks by name, Arch file or config, and the runtime model of a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmscale.apis.networks import (
    build_module,
    build_network,
    config_image_shape,
    find_arch,
    image_shape,
    quiet_log,
)
from mmscale.arch import Arch
from mmscale.arch.checks import integer
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
from mmscale.errors import UsageError
from mmscale.launch.command_line import read_config

if TYPE_CHECKING:
    from mmengine.config import Config


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
    integer('batch', batch)
    if resolution is not None:
        integer('resolution', resolution)
    if latency is not None:
        this_device(latency, batch)
    if Path(source).suffix == '.py':
        return _config_report(source, resolution, convention, batch, latency, options)
    if options:
        raise UsageError(f'--cfg-options {" ".join(options)}: {source} is no config')
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
        raise UsageError(f'{source}: the config has no model')
    with quiet_log():
        return _model_report(config, Path(source).stem, resolution, convention, batch, latency)


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
