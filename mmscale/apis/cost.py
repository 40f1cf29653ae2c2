"""Costs of networks however they are named, and the runtime model of a device."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmscale.apis.model_cost import count_network, samples_of, texts
from mmscale.apis.networks import Network, build_network, find_network, image_shape, quiet_log
from mmscale.arch import Arch
from mmscale.arch.checks import integer
from mmscale.cost import (
    Cost,
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
from mmscale.tables import Printed, make_table, size_text

if TYPE_CHECKING:
    from mmengine.config import Config
    from rich.table import Table
    from torch import nn

_CONVENTIONS = {
    'mmscale': 'multiply-adds of convolutions, linear layers and attention; outputs of the same',
    'pycls': 'as mmscale, and bias additions are flops, outputs of max-pools are acts',
}
_MEMORY = ('batch', 'peak_bytes_inference', 'activation_bytes_training')


@dataclass(frozen=True, repr=False)
class NetworkCost(Printed):
    """Cost of one image through a network; prints its table.

    Attributes:
        name: Of the network.
        shape: Height and width of the image, in pixels; of a text its length, in tokens.
        shape_source: What says so.
        flops: Multiply-adds.
        params: Trainable numbers.
        acts: Elements that convolutions and linear layers output.
        convention: See :func:`mmscale.cost.count`.
        parts: Of each part its ``name``, ``flops``, ``params`` and ``acts``; of an Arch also its
            ``blocks``, its ``channels`` and the ``size`` of its output.
        memory: Counted from the module, with the two memory figures; None if not asked for.
        latency: None if not asked for.
        difference: What MMEngine's analyzer says, and why; None if not asked for.
        uncounted: Operations that seem to multiply matrices and are not counted.
    """

    name: str
    shape: tuple[int, ...]
    shape_source: str
    flops: int
    params: int
    acts: int
    convention: str
    parts: tuple[dict[str, Any], ...]
    memory: ModuleCost | None = None
    latency: Latency | None = None
    difference: ToolDifference | str | None = None
    uncounted: tuple[str, ...] | None = None

    @property
    def cost(self) -> Cost:
        """The three totals alone."""
        return Cost(self.flops, self.params, self.acts)

    def to_json(self) -> dict[str, Any]:
        """Returns the cost as plain JSON data."""
        data: dict[str, Any] = {
            'name': self.name,
            'resolution': self.shape[0] if len({*self.shape}) == 1 else [*self.shape],
            'shape': [*self.shape],
            'shape_source': self.shape_source,
            **asdict(self.cost),
            'convention': self.convention,
            'parts': list(self.parts),
        }
        if self.memory is not None:
            data['memory'] = {key: getattr(self.memory, key) for key in _MEMORY}
        if self.uncounted is not None:
            data['uncounted'] = list(self.uncounted)
        if self.difference is not None:
            is_text = isinstance(self.difference, str)
            data['mmengine'] = {} if is_text else asdict(self.difference)
            data['mmengine']['text'] = str(self.difference)
        if self.latency is not None:
            data['latency'] = asdict(self.latency)
        return data

    def renderables(self) -> list[Table | str]:
        """A row per part and the total; then how it was counted, memory and latency."""
        size = size_text(self.shape)
        shapes = [key for key in ('blocks', 'channels', 'size') if key in self.parts[0]]
        numbers = ('flops', 'params', 'acts')
        rows = [
            (
                part['name'],
                *(part[key] or None for key in shapes),
                *(f'{part[key]:,}' for key in numbers),
            )
            for part in self.parts
        ]
        total = ('total', *[None] * len(shapes), *(f'{getattr(self, key):,}' for key in numbers))
        title = f'{self.name} at {size}, convention {self.convention}'
        lines = [f'{self.convention}: {_CONVENTIONS[self.convention]}.']
        if self.shape_source == 'an assumption':
            lines.insert(0, f'Nothing says the size of the images: {size} are assumed.')
        else:
            lines.insert(0, f'{size}: said by {self.shape_source}.')
        if self.memory is not None:
            lines.append(self.memory.memory_line)
        if self.latency is not None:
            lines.append(f'Latency: {self.latency}.')
        if self.difference is not None:
            lines.append(f'{self.difference}.')
            lines.append(
                'Tools that count additions apart (torch.utils.flop_counter) say twice as much.'
            )
        if self.uncounted:
            lines.append(f'Not counted: {", ".join(self.uncounted)}.')
        return [make_table(title, ('part', *shapes, *numbers), rows, total), *lines]


def get_cost(
    source: str | Path | Mapping | Arch | Config | nn.Module | Network,
    resolution: int | None = None,
    convention: str = 'mmscale',
    batch: int = 1,
    latency: str | None = None,
    memory: bool = False,
    options: Sequence[str] = (),
    shape: tuple[int, int] | None = None,
    compare: bool = False,
    scaling_stage: int | None = None,
) -> NetworkCost:
    """Counts a network, however it is named.

    An Arch is counted by arithmetic; anything else is built and run without computing.

    Args:
        source: See :func:`mmscale.apis.networks.find_network`.
        resolution: Side of the square image; by default what the network is made for.
        convention: See :func:`mmscale.cost.count`.
        batch: Images that latency and memory are of.
        latency: Device to time a batch on, ``cpu`` or ``cuda``.
        memory: Whether to count memory also for an Arch, which builds it, and for a detector that
            needs samples, which takes minutes.
        options: Overrides of a config, ``KEY=VALUE`` each.
        shape: Height and width of the image instead of `resolution`.
        compare: Whether to say what MMEngine's analyzer counts, and why.
        scaling_stage: Which network of a search's result; by default the base model.

    Raises:
        UsageError: There is no such network or device, or a value is not allowed.

    Example:
        >>> cost = get_cost('resnet-50')
        >>> cost.flops, cost.params, cost.acts
        (4089184256, 25557032, 11114984)
    """
    integer('batch', batch)
    if resolution is not None:
        if shape is not None:
            raise UsageError(f'shape={shape} and resolution={resolution}: give one of them')
        shape = (integer('resolution', resolution),) * 2
    if shape is not None:
        if not isinstance(shape, Sequence) or len(shape) != 2:
            raise UsageError(f'shape={shape!r:.60} must be the height and the width')
        for i, side in enumerate(shape):
            integer(f'shape[{i}]', side)
    if latency is not None:
        this_device(latency, batch)
    network = find_network(source, options, scaling_stage, shape)
    # Arithmetic needs no MMEngine, whose log is to be kept quiet elsewhere.
    with contextlib.nullcontext() if network.is_closed_form else quiet_log():
        if network.is_closed_form:
            found = _closed_form(network, convention, batch, memory, compare)
        else:
            found = _counted(network, convention, batch, memory, compare)
        if latency is not None:
            measured = measure_latency(network.build(), network.image_shape, latency, batch)
            found = replace(found, latency=measured)
    return found


def _closed_form(
    network: Network, convention: str, batch: int, memory: bool, compare: bool
) -> NetworkCost:
    """Cost of an Arch by arithmetic."""
    arch = network.arch
    parts = [asdict(part) for part in count_parts(arch, convention)]
    found = NetworkCost(
        network.name,
        (arch.resolution, arch.resolution),
        network.shape_source,
        **asdict(count(arch, convention)),
        convention=convention,
        parts=tuple(part | part.pop('cost') for part in parts),
    )
    if compare:
        found = replace(found, difference=explain_arch_difference(arch, convention))
    if memory:
        counted = count_module(network.skeleton, network.image_shape, batch=batch)
        found = replace(found, memory=counted)
    return found


def _counted(
    network: Network, convention: str, batch: int, memory: bool, compare: bool
) -> NetworkCost:
    """Cost of a model, counted from what it runs; with its memory, where that is quick."""
    shape = network.image_shape
    counted = count_network(network, convention, batch, memory or None)
    difference: ToolDifference | str | None = None
    if compare:
        model = network.build()
        is_text = len(shape) == 1
        try:
            difference = explain_difference(
                model,
                None if is_text else shape,
                texts(shape) if is_text else None,
                convention,
                None if is_text else samples_of(model, shape),
            )
        except ValueError as error:
            difference = f"MMEngine's FlopAnalyzer: {error}"
    return NetworkCost(
        network.name,
        shape if len(shape) == 1 else shape[1:],
        network.shape_source,
        **asdict(counted.cost),
        convention=convention,
        parts=tuple({'name': part, **asdict(cost)} for part, cost in counted.by_part.items()),
        memory=None if counted.memory_line is None else counted,
        difference=difference,
        uncounted=counted.uncounted,
    )


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
