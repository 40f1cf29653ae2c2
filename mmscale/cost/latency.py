"""Latency: measured on this device, and predicted from flops and acts by a fitted model."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mmscale.arch.checks import check_keys, check_schema, choice, integer, number
from mmscale.arch.json_files import read_json
from mmscale.errors import UsageError
from mmscale.files import write_json

if TYPE_CHECKING:
    from torch import nn

DEVICES = ('cpu', 'cuda')
DTYPES = ('float32', 'float16', 'bfloat16')
LATENCY_SCHEMA = 1

# As many unknowns as the runtime model has.
_FEWEST_NETWORKS = 3
_MOST = 2**20
# Of a coefficient, a cost or a time: what is predicted with them is finite.
_LARGEST = 1e18
# Of a fit whose growth is 0.
_ROUNDING = 1e-9
_METRICS = ('flops', 'params', 'acts')


class HasCost(Protocol):
    """A cost as of :func:`mmscale.cost.count`, or arrays of them as of a CostTable."""

    flops: Any
    params: Any
    acts: Any


@dataclass(frozen=True)
class LatencySetting:
    """What a time depends on beside the network.

    Attributes:
        device: ``cpu`` or ``cuda``.
        device_name: The processor's or the GPU's own name.
        threads: Threads that torch computes with on a CPU.
        batch: Images that are computed together.
        dtype: ``float32``, ``float16`` or ``bfloat16``.
        train: Whether a forward and a backward pass are timed, not a forward pass alone.
    """

    device: str = 'cpu'
    device_name: str = ''
    threads: int = 1
    batch: int = 1
    dtype: str = 'float32'
    train: bool = False

    def __post_init__(self) -> None:
        choice('latency: device', self.device, DEVICES)
        choice('latency: dtype', self.dtype, DTYPES)
        integer('latency: threads', self.threads, most=_MOST)
        integer('latency: batch', self.batch, most=_MOST)
        for key, expected in (('device_name', str), ('train', bool)):
            if not isinstance(getattr(self, key), expected):
                raise UsageError(
                    f'latency: {key}={getattr(self, key)!r:.60} must be a {expected.__name__}'
                )

    def __str__(self) -> str:
        threads = ''
        if self.device == 'cpu':
            threads = f', {self.threads} thread{"s" if self.threads > 1 else ""}'
        step = 'forward and backward' if self.train else 'forward'
        return f'{step}, batch {self.batch}, {self.dtype}, {self.device_name}{threads}'


@dataclass(frozen=True)
class Latency:
    """Measured time of one batch.

    Attributes:
        median_ms: Median of the repeats, in milliseconds.
        low_ms: First quartile.
        high_ms: Third quartile.
        repeats: Timed runs, after the warm-up.
        setting: What was measured on.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    repeats: int
    setting: LatencySetting

    def __str__(self) -> str:
        return (
            f'{self.median_ms:,.2f} ms (half of {self.repeats} runs within {self.low_ms:,.2f}-'
            f'{self.high_ms:,.2f}), {self.setting}'
        )


def this_device(
    device: str = 'cpu', batch: int = 1, dtype: str = 'float32', train: bool = False
) -> LatencySetting:
    """The setting that :func:`measure_latency` would measure on here.

    Raises:
        ValueError: A value is not allowed, or there is no such device.
    """
    setting = LatencySetting(device, '', 1, batch, dtype, train)  # checks them
    import torch

    if device == 'cuda':
        if not torch.cuda.is_available():
            raise UsageError('latency: device=cuda: torch finds no GPU here')
        name = torch.cuda.get_device_name()
    else:
        name = platform.processor() or platform.machine()
        with contextlib.suppress(OSError):
            lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
            models = [line.partition(':')[2].strip() for line in lines if 'model name' in line]
            name = models[0] if models else name
    return replace(setting, device_name=name, threads=torch.get_num_threads())


def measure_latency(
    module: nn.Module,
    input_shape: Sequence[int],
    device: str = 'cpu',
    batch: int = 1,
    dtype: str = 'float32',
    train: bool = False,
    warmup: int = 3,
    repeats: int = 30,
    clock: Callable[[], float] = time.perf_counter,
) -> Latency:
    """Times a network on a batch of random images; a GPU is waited for before the clock is read.

    The protocol is that of pycls: 3 runs to warm up, 30 timed ones. The module itself is left as
    it is, a copy is measured. A forward pass runs in inference mode with weights and images of
    `dtype`; a training step keeps weights in float32 and uses autocast, as trainings do.

    Args:
        module: Maps one tensor to tensors (in any nesting); an OpenMMLab model does so too.
        input_shape: Shape of one image, such as (3, 224, 224).
        device: ``cpu`` or ``cuda``.
        batch: Images in the batch.
        dtype: ``float32``, ``float16`` or ``bfloat16``.
        train: Time forward and backward pass (without the optimiser's step) in training mode.
        warmup: Runs that are not timed.
        repeats: Timed runs.
        clock: Tells the time, in seconds.

    Raises:
        ValueError: A setting is not allowed, or there is no such device.
    """
    setting = this_device(device, batch, dtype, train)
    integer('latency: warmup', warmup, 0)
    integer('latency: repeats', repeats)
    import torch

    computed = getattr(torch, dtype)
    network = copy.deepcopy(module).to(device, torch.float32 if train else computed)
    network.train(train)  # not chained: train() of mmpretrain's backbones returns None
    images = torch.randn(batch, *input_shape, device=device, dtype=torch.float32)

    def infer() -> None:
        network(images)

    def step() -> None:
        network.zero_grad()
        with torch.autocast(device, computed, enabled=dtype != 'float32'):
            output = network(images)
        torch.stack([tensor.float().mean() for tensor in _tensors(output)]).sum().backward()

    if not train:
        images = images.to(computed)
    run = step if train else infer
    seconds = []
    with torch.inference_mode(not train):
        for _ in range(warmup):
            run()
        for _ in range(repeats):
            _wait_for(device)
            start = clock()
            run()
            _wait_for(device)
            seconds.append(clock() - start)
    low, median, high = (1000 * float(q) for q in np.percentile(seconds, (25, 50, 75)))
    return Latency(median, low, high, repeats, setting)


def _wait_for(device: str) -> None:
    if device == 'cuda':
        import torch

        torch.cuda.synchronize()


def _tensors(output: object) -> Iterator[Any]:
    """The tensors in nested lists, tuples and mappings that a gradient can flow back from."""
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, (list, tuple)):
        for part in output:
            yield from _tensors(part)
    elif getattr(output, 'requires_grad', False):
        yield output


@dataclass(frozen=True)
class MeasuredNetwork:
    """A network that a runtime model was fitted on: its cost for one image, its time for a batch.

    Attributes:
        name: The network.
        flops: Multiply-adds.
        params: Parameters.
        acts: Activations.
        ms: Milliseconds of a batch.
    """

    name: str
    flops: int
    params: int
    acts: int
    ms: float

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise UsageError(f'latency: name={self.name!r:.60} must be a text')
        for key in (*_METRICS, 'ms'):
            number(f'latency: {self.name:.60}: {key}', getattr(self, key), above=0, most=_LARGEST)


@dataclass(frozen=True)
class LatencyModel:
    """Runtime model of one device: milliseconds = a + b * acts + c * flops, none negative.

    Time follows acts more than flops ("Fast and Accurate Model Scaling", arXiv 2103.06877), so
    that both are needed to compare networks that were scaled in different ways.

    Attributes:
        a: Milliseconds that a batch takes whatever the network.
        b: Milliseconds per activation (of one image; the batch is in it).
        c: Milliseconds per multiply-add (likewise).
        setting: What was measured on; the model holds for nothing else.
        networks: The measured networks.
        pearson: Correlation of time with ``flops``, ``params`` and ``acts``.
        error: Median of abs(predicted / measured - 1) over the measured networks.
    """

    a: float
    b: float
    c: float
    setting: LatencySetting
    networks: tuple[MeasuredNetwork, ...]
    pearson: Mapping[str, float]
    error: float

    @classmethod
    def fit(
        cls,
        costs: Sequence[HasCost],
        milliseconds: Sequence[float],
        setting: LatencySetting,
        names: Sequence[str] | None = None,
    ) -> LatencyModel:
        """Fits measured times by non-negative least squares of the relative errors.

        Relative, because what is measured spans orders of magnitude and so does its noise.

        Args:
            costs: Cost of each network for one image.
            milliseconds: Time of each network for a batch.
            setting: What was measured on.
            names: The networks' names, by default their numbers.

        Raises:
            ValueError: There are fewer than three networks, the lists differ in length, a number
                is not positive, or all networks cost the same.
        """
        if names is None:
            names = [str(number) for number in range(len(costs))]
        if not len(costs) == len(milliseconds) == len(names):
            raise UsageError(
                f'latency: {len(costs)} costs, {len(milliseconds)} times and {len(names)} names '
                'must be equally many'
            )
        networks = tuple(
            MeasuredNetwork(name, int(cost.flops), int(cost.params), int(cost.acts), float(ms))
            for name, cost, ms in zip(names, costs, milliseconds, strict=True)
        )
        return _fitted(setting, networks)

    def predict(self, cost: HasCost) -> Any:
        """Milliseconds of a batch of networks of this cost: a number, or an array of arrays."""
        return self.a + self.b * cost.acts + self.c * cost.flops

    @property
    def is_constant(self) -> bool:
        """Whether it predicts the same for all networks, up to rounding: their times are noise."""
        growth = max(
            (self.b * network.acts + self.c * network.flops for network in self.networks),
            default=self.b + self.c,
        )
        return growth <= _ROUNDING * self.a

    def pearson_interval(self, metric: str) -> tuple[float, float] | None:
        """The 95 % interval of the correlation of time with a metric, by bootstrap.

        Few networks say little of others, and the more their sizes spread the nearer any
        correlation is to 1.

        Args:
            metric: ``flops``, ``params`` or ``acts``.

        Returns:
            Lower and upper end; None where too few networks differ.

        Raises:
            UsageError: There is no such metric.
        """
        from scipy.stats import bootstrap

        choice('metric', metric, _METRICS)
        values = np.array([getattr(network, metric) for network in self.networks], float)
        times = np.array([network.ms for network in self.networks])
        if len(values) < 2 or np.ptp(values) == 0 or np.ptp(times) == 0:
            return None
        found = bootstrap(
            (values, times),
            _pearson,
            paired=True,
            vectorized=False,
            method='percentile',
            n_resamples=2000,
            random_state=np.random.default_rng(0),
        )
        low, high = (float(end) for end in found.confidence_interval)
        return low, high

    def save(self, path: str | Path) -> None:
        """Writes the model as a JSON file that :meth:`load` reads."""
        data = {'schema': LATENCY_SCHEMA, **asdict(self)}
        write_json(path, {**data, 'checksum': _checksum(data)})

    @classmethod
    def load(cls, path: str | Path) -> LatencyModel:
        """Reads a saved model.

        Raises:
            ValueError: The file is not JSON or was edited, or a key is unknown, missing or out of
                range.
            FileNotFoundError: There is no such file.
        """
        data = check_keys(f'{path}', read_json(path), None, ('schema',))
        # Files of before there were checksums have none.
        checksum, whole = data.pop('checksum', None), dict(data)
        check_schema(f'{path}', data.pop('schema'), LATENCY_SCHEMA)
        checked = _checked(f'{path}', data, cls)
        for key in ('a', 'b', 'c', 'error'):
            number(f'{path}: {key}', checked[key], 0, _LARGEST)
        pearson = check_keys(f'{path}: pearson', checked['pearson'], (), _METRICS)
        for key in _METRICS:
            number(f'{path}: pearson.{key}', pearson[key], -1.001, 1.001)  # rounding
        checked['setting'] = _build(f'{path}: setting', checked['setting'], LatencySetting)
        if not isinstance(checked['networks'], list):
            raise UsageError(f'{path}: networks={checked["networks"]!r:.60} must be a list')
        checked['networks'] = tuple(
            _build(f'{path}: networks[{i}]', network, MeasuredNetwork)
            for i, network in enumerate(checked['networks'])
        )
        # Of what was checked: nothing in it is nested.
        if checksum not in (None, _checksum(whole)):
            raise UsageError(f'{path}: its checksum does not match: it was edited or is damaged')
        return cls(**checked)


def _checksum(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _fitted(setting: LatencySetting, networks: tuple[MeasuredNetwork, ...]) -> LatencyModel:
    if len(networks) < _FEWEST_NETWORKS:
        raise UsageError(
            f'latency: {len(networks)} networks are measured, a fit needs {_FEWEST_NETWORKS}'
        )
    if len({(network.flops, network.acts) for network in networks}) < _FEWEST_NETWORKS:
        raise UsageError(
            f'latency: a fit needs {_FEWEST_NETWORKS} networks that differ in flops or acts'
        )
    from scipy.optimize import nnls

    ms = np.array([network.ms for network in networks])
    columns = np.array([[1.0, network.acts, network.flops] for network in networks])
    # Columns of like size, rows divided by the time: the residuals are relative errors.
    sizes = columns.max(axis=0)
    solution, _ = nnls(columns / sizes / ms[:, None], np.ones(len(ms)))
    a, b, c = (float(value) for value in solution / sizes)
    predicted = columns @ np.array([a, b, c])
    pearson = {
        key: _pearson(np.array([getattr(network, key) for network in networks], float), ms)
        for key in _METRICS
    }
    error = float(np.median(np.abs(predicted / ms - 1)))
    return LatencyModel(a, b, c, setting, networks, pearson, error)


def _pearson(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation of two rows of numbers; 0 where one of them does not vary."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def _checked(owner: str, data: object, cls: type) -> dict[str, Any]:
    """A mapping that has all keys of a dataclass without a default, and no others than its own."""
    return check_keys(
        owner,
        data,
        [field.name for field in fields(cls)],
        [field.name for field in fields(cls) if field.default is MISSING],
    )


def _build(owner: str, data: object, cls: type) -> Any:
    try:
        return cls(**_checked(owner, data, cls))
    except ValueError as error:
        message = str(error)
        raise UsageError(message if owner in message else f'{owner}: {message}') from None
