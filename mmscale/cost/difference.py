"""Why another tool reports other flops of the same module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmscale.cost.module import count_module, is_matrix_work, on_device, weightless_twin

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class ToolDifference:
    """Why another tool reports other flops of the same module.

    Attributes:
        tool: The tool.
        flops: What it reports.
        ours: What :func:`count_module` reports.
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


def explain_difference(
    module: nn.Module,
    input_shape: Sequence[int] | None = None,
    inputs: Sequence[torch.Tensor] | None = None,
) -> ToolDifference:
    """What MMEngine's FlopAnalyzer reports of a module, and why it differs from ours.

    It also counts norms, some pools and interpolations, and knows no fused attention. It traces
    the module, which really computes one forward pass on the CPU.

    Args:
        module: As for :func:`count_module`.
        input_shape: Shape of one image.
        inputs: Positional arguments of the module instead.

    Raises:
        ValueError: The module does not run on such an input, or cannot be traced.
    """
    ours = count_module(module, input_shape, inputs, memory=False).flops
    import torch
    from mmengine.analysis import FlopAnalyzer

    twin = weightless_twin(module, 'cpu')
    twin.eval()
    if inputs is None:
        inputs = (torch.zeros(1, *input_shape),)
    images = tuple(on_device(tensor, 'cpu') for tensor in inputs)
    analyzer = FlopAnalyzer(twin, images)
    analyzer.unsupported_ops_warnings(False)
    analyzer.uncalled_modules_warnings(False)
    analyzer.tracer_warnings('none')
    try:
        theirs = {name: int(flops) for name, flops in analyzer.by_operator().items()}
    except (RuntimeError, TypeError, ValueError) as error:
        message = ' '.join(str(error).split())
        raise ValueError(f'{type(module).__name__} cannot be traced: {message:.200}') from error
    reasons = {name: flops for name, flops in theirs.items() if not is_matrix_work(name)}
    missing = sum(theirs.values()) - sum(reasons.values()) - ours
    if missing:
        unknown = [name.removeprefix('aten::') for name in analyzer.unsupported_ops()]
        blamed = [name for name in unknown if is_matrix_work(name)] or ['matrix products']
        reasons[', '.join(blamed)] = missing
    total = sum(theirs.values())
    return ToolDifference("MMEngine's FlopAnalyzer", total, ours, reasons)
