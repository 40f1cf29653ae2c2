"""Why another tool reports other flops of the same network."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmscale.arch.arch import Arch
from mmscale.arch.presets import get_arch
from mmscale.cost.count import count, output_size
from mmscale.cost.module import count_module, on_device, weightless_twin
from mmscale.cost.operations import is_matrix_work
from mmscale.errors import FOREIGN_ERRORS, UsageError, one_line

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import nn


@dataclass(frozen=True)
class ToolDifference:
    """Why another tool reports other flops of the same network.

    Attributes:
        tool: The tool.
        flops: What it reports.
        ours: What :func:`count` or :func:`count_module` reports.
        reasons: What it counts more (positive) or less (negative), by operation; together they
            are the whole difference.
    """

    tool: str
    flops: int
    ours: int
    reasons: dict[str, int]

    def __str__(self) -> str:
        if not self.reasons:
            return f'{self.tool} reports the same flops'
        parts = [
            ' and '.join(f'{name} ({number:+,})' for name, number in chosen)
            for chosen in (
                [(name, number) for name, number in self.reasons.items() if number > 0],
                [(name, number) for name, number in self.reasons.items() if number < 0],
            )
        ]
        why = [
            f'{verb} {part}' for verb, part in zip(('adds', 'misses'), parts, strict=True) if part
        ]
        return f'{self.tool} reports {self.flops:,} flops: it {", and ".join(why)}'


def _mmengine_difference(
    plain: int, convention_flops: int, reasons: dict[str, int]
) -> ToolDifference:
    """MMEngine's report from ours without biases, and from what else it counts or misses."""
    total = plain + sum(reasons.values())
    if convention_flops != plain:
        reasons = {**reasons, 'bias additions': plain - convention_flops}
    return ToolDifference("MMEngine's FlopAnalyzer", total, convention_flops, reasons)


def explain_arch_difference(
    arch: str | Path | dict | Arch, convention: str = 'mmscale'
) -> ToolDifference:
    """What MMEngine's FlopAnalyzer reports of an Arch's network, and why it differs from ours.

    By arithmetic: two flops for every element that a BN outputs, one for every element that an
    average pool (of an SE or of the neck) takes in. Nothing is built.

    Args:
        arch: The network, as :func:`mmscale.arch.get_arch` finds it.
        convention: How ours is counted, see :func:`count`.

    Raises:
        ValueError: The convention is unknown.
    """
    arch = get_arch(arch)
    cost = count(arch)
    size = output_size(arch.resolution, arch.stem.stride)
    if arch.stem.max_pool:
        size = output_size(size, 2)
    without_norm = arch.head.hidden_channels + arch.head.num_classes
    pooled = 0
    for block in arch.blocks:
        size = output_size(size, block.stride)
        if block.se is not None:
            gated = block.grouped_widths[1]
            without_norm += block.se.channels + gated
            pooled += gated * size**2
    pooled += arch.feature_channels * size**2
    reasons = {'batch_norm': 2 * (cost.acts - without_norm), 'adaptive_avg_pool2d': pooled}
    return _mmengine_difference(cost.flops, count(arch, convention).flops, reasons)


def explain_difference(
    module: nn.Module,
    input_shape: Sequence[int] | None = None,
    inputs: Sequence[torch.Tensor] | None = None,
    convention: str = 'mmscale',
    keywords: Callable[[int], dict[str, Any]] | None = None,
) -> ToolDifference:
    """What MMEngine's FlopAnalyzer reports of a module, and why it differs from ours.

    It also counts norms, some pools and interpolations, and knows no fused attention. It traces
    the module, which really computes one forward pass on the CPU.

    Args:
        module: As for :func:`count_module`.
        input_shape: Shape of one image.
        inputs: Positional arguments of the module instead.
        convention: How ours is counted, see :func:`count`.
        keywords: Makes keyword arguments of the module, for so many images.

    Raises:
        ValueError: The convention is unknown, the module does not run on such an input, or it
            cannot be traced.
    """
    given: dict[str, Any] = dict(memory=False, keywords=keywords)
    plain = ours = count_module(module, input_shape, inputs, **given).flops
    if convention != 'mmscale':
        ours = count_module(module, input_shape, inputs, convention, **given).flops
    import torch
    from mmengine.analysis import FlopAnalyzer

    twin = weightless_twin(module, 'cpu')
    twin.eval()
    if keywords is not None:
        twin.forward = functools.partial(twin.forward, **keywords(1))
    if inputs is None:
        inputs = (torch.zeros(1, *input_shape),)
    images = tuple(on_device(tensor, 'cpu') for tensor in inputs)
    analyzer = FlopAnalyzer(twin, images)
    analyzer.unsupported_ops_warnings(False)
    analyzer.uncalled_modules_warnings(False)
    analyzer.tracer_warnings('none')
    try:
        theirs = {name: int(flops) for name, flops in analyzer.by_operator().items()}
    except FOREIGN_ERRORS as error:
        raise UsageError(
            f'{type(module).__name__} cannot be traced: {one_line(error):.200}'
        ) from error
    reasons = {name: flops for name, flops in theirs.items() if not is_matrix_work(name)}
    missing = sum(theirs.values()) - sum(reasons.values()) - plain
    if missing:
        unknown = [name.removeprefix('aten::') for name in analyzer.unsupported_ops()]
        blamed = [name for name in unknown if is_matrix_work(name)] or ['matrix products']
        reasons[', '.join(blamed)] = missing
    return _mmengine_difference(plain, ours, reasons)
