"""Cost of any nn.Module: counted from the operations that it really runs."""

from __future__ import annotations

import contextlib
import copy
import re
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mmscale.arch.checks import integer
from mmscale.cost.count import Cost, check_convention
from mmscale.cost.operations import drawn_products, has_bias, is_matrix_work, matrix_formulas
from mmscale.errors import FOREIGN_ERRORS, UsageError, one_line
from mmscale.tables import Printed, make_table

if TYPE_CHECKING:
    import torch
    from rich.table import Table
    from torch import nn

# Part of the work that lies in no part of its own: functional calls and weights of the model.
ITSELF = 'itself'

# Operations whose output has the shape of their input.
_SHAPE_KEEPING = {
    *('batch_norm', 'group_norm', 'instance_norm', 'layer_norm'),
    *('gelu', 'hardsigmoid', 'hardswish', 'hardtanh', 'relu', 'relu6', 'sigmoid', 'silu'),
}


@dataclass(frozen=True)
class ModuleCost(Printed):
    """Cost of a module, for one image (or for the inputs that were given); prints its table.

    Attributes:
        flops: Multiply-adds of convolutions, linear layers and all other matrix products, those
            of attention included.
        params: Parameters, frozen ones too, shared ones once.
        acts: Elements that convolutions, linear layers and matrix products output. The scores
            of attention count also where a fused kernel never writes them.
        convention: How it was counted; ``pycls`` adds bias additions to flops and outputs of
            max-pools to acts.
        by_part: Cost of each part, in the module's order: the children of the backbone and of
            the model, lists of them one by one. ``itself`` is what belongs to none.
        batch: Images of the two memory figures.
        peak_bytes_inference: Largest sum of bytes of input, intermediate and output tensors that
            are alive at once in a forward pass without gradients. Weights, workspace of kernels
            and rounding of the allocator are not in it. None if not asked for.
        activation_bytes_training: Bytes of the tensors that a forward pass in training mode
            keeps for the backward pass, each storage once, weights and buffers left out. None if
            not asked for, or where the module cannot train on such a batch.
        uncounted: Operations that seem to multiply matrices and are not counted.
    """

    flops: int
    params: int
    acts: int
    convention: str
    by_part: dict[str, Cost]
    batch: int = 1
    peak_bytes_inference: int | None = None
    activation_bytes_training: int | None = None
    uncounted: tuple[str, ...] = ()

    @property
    def cost(self) -> Cost:
        """The three totals alone, as :func:`mmscale.cost.count` gives them."""
        return Cost(self.flops, self.params, self.acts)

    @property
    def memory_line(self) -> str | None:
        """The two memory figures as a sentence, None if they were not asked for."""
        if self.peak_bytes_inference is None:
            return None
        kept = self.activation_bytes_training
        training = 'not trainable so' if kept is None else f'{kept / 2**20:,.1f} MiB kept to train'
        return (
            f'Activation memory, batch {self.batch}: {self.peak_bytes_inference / 2**20:,.1f} MiB '
            f'at the peak of inference, {training}.'
        )

    def renderables(self) -> list[Table | str]:
        """A row per part and the total; then memory, and what was not counted."""
        names = ('flops', 'params', 'acts')
        rows = [
            (part, *(f'{getattr(cost, name):,}' for name in names))
            for part, cost in self.by_part.items()
        ]
        total = ('total', *(f'{getattr(self, name):,}' for name in names))
        table = make_table(f'convention {self.convention}', ('part', *names), rows, total)
        missing = f'Not counted: {", ".join(self.uncounted)}.' if self.uncounted else None
        return [table, *(line for line in (self.memory_line, missing) if line)]


def count_module(
    module: nn.Module,
    input_shape: Sequence[int] | None = None,
    inputs: Sequence[torch.Tensor] | None = None,
    convention: str = 'mmscale',
    batch: int = 1,
    memory: bool = True,
    keywords: Callable[[int], dict[str, Any]] | None = None,
    draw: bool = False,
) -> ModuleCost:
    """Counts a module by running it once and looking at every operation of torch.

    It runs without computing anything, on torch's meta device, so that size does not matter; a
    module that needs real numbers on its way (their sizes depend on them) runs where its weights
    are. The module is left as it is. Work that torch's dispatcher does not see (compiled
    extensions that are not registered as operators) is not counted.

    Args:
        module: Maps tensors to anything; an OpenMMLab model runs in mode ``tensor``.
        input_shape: Shape of one image, such as (3, 224, 224).
        inputs: Positional arguments of the module instead; the counts are for all of them.
        convention: ``mmscale`` or ``pycls``, see :func:`mmscale.cost.count`.
        batch: Images that memory is counted for, with `input_shape`.
        memory: Whether to count memory too, which needs another pass.
        keywords: Makes keyword arguments of the module, for so many images.
        draw: Whether a module that needs real numbers may get random ones where it would multiply
            matrices, which takes much less time; right where its weights are random anyway.

    Raises:
        ValueError: The convention is unknown, not exactly one of `input_shape` and `inputs` is
            given, or the module does not run on such an input.
    """
    check_convention(convention)
    if (input_shape is None) == (inputs is None):
        raise UsageError('count_module: exactly one of input_shape and inputs must be given')
    shapes = [tuple(tensor.shape) for tensor in inputs] if inputs else [(1, *input_shape)]
    integer('count_module: batch', batch)
    for size in (size for shape in shapes for size in shape):
        integer(f'count_module: input_shape={input_shape}: size', size)
    biased = convention == 'pycls'
    given = _Given(_tensors(inputs, shapes), keywords, draw)
    tally = _tally(module, given, biased)
    peak, kept = None, None
    if memory:
        if inputs is None and batch > 1:
            shapes = [(batch, *input_shape)]
            given = _Given(_tensors(inputs, shapes), keywords, draw)
            peak = _tally(module, given, False).peak
        else:
            peak = tally.peak
        with contextlib.suppress(ValueError):
            kept = _kept_for_backward(module, given)
    for name in sorted(tally.uncounted):
        warnings.warn(
            f'{type(module).__name__}: {name} seems to multiply matrices and is not counted',
            stacklevel=2,
        )
    by_part = _by_part(module, tally)
    total = sum(by_part.values(), Cost())
    return ModuleCost(
        total.flops,
        total.params,
        total.acts,
        convention,
        by_part,
        shapes[0][0],
        peak,
        kept,
        tuple(sorted(tally.uncounted)),
    )


def count_layers(
    module: nn.Module,
    input_shape: Sequence[int] | None = None,
    inputs: Sequence[torch.Tensor] | None = None,
) -> dict[str, Cost]:
    """Flops and acts of each module by itself, without those inside it, under its name.

    Args:
        module: As for :func:`count_module`.
        input_shape: Shape of one image.
        inputs: Positional arguments of the module instead.

    Raises:
        ValueError: Not exactly one of `input_shape` and `inputs` is given, or the module does not
            run on such an input.
    """
    if (input_shape is None) == (inputs is None):
        raise UsageError('count_layers: exactly one of input_shape and inputs must be given')
    tally = _tally(module, _Given(_tensors(inputs, [(1, *(input_shape or ()))])), False)
    return {
        name: Cost(flops=tally.flops[name], acts=tally.acts[name])
        for name in dict.fromkeys([*tally.flops, *tally.acts])
    }


@dataclass(frozen=True)
class _Given:
    """What a module is run on, see :func:`count_module`."""

    inputs: tuple[torch.Tensor, ...]
    keywords: Callable[[int], dict[str, Any]] | None = None
    draw: bool = False

    def run(self, module: nn.Module, images: tuple[torch.Tensor, ...]) -> None:
        """Runs a module on the inputs, which are on its device."""
        keywords = self.keywords(len(images[0])) if self.keywords else {}
        module(*images, **keywords)

    def mode(self) -> contextlib.AbstractContextManager[Any]:
        """What the run goes through below what watches it."""
        return drawn_products() if self.draw else contextlib.nullcontext()


@dataclass
class _Tally:
    """What one forward pass did, by the innermost module that was running."""

    biased: bool
    weights: set[int] = field(default_factory=set)
    flops: Counter[str] = field(default_factory=Counter)
    acts: Counter[str] = field(default_factory=Counter)
    uncounted: set[str] = field(default_factory=set)
    running: list[str] = field(default_factory=lambda: [''])
    live: dict[int, int] = field(default_factory=dict)
    peak: int = 0

    def add(self, name: str, formula: Callable | None, args: tuple, output: Any) -> None:
        """Counts one operation; `name` is its name without namespace and overload."""
        where = self.running[-1]
        if formula is not None:
            flops, acts = formula(args, output)
            self.flops[where] += flops
            self.acts[where] += acts
            if self.biased and has_bias(name, args):
                self.flops[where] += output.numel()
        elif self.biased and re.match(r'max_pool\dd', name):
            first = output[0] if isinstance(output, tuple) else output
            self.acts[where] += first.numel()
        elif is_matrix_work(name):
            self.uncounted.add(name)

    def leave(self, *_: Any) -> None:
        """Notes that the innermost module has ended."""
        self.running.pop()

    def hold(self, tensors: Iterable[torch.Tensor]) -> None:
        """Notes the storages of new tensors as alive until torch frees them."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self.live and key not in self.weights:
                self.live[key] = storage.nbytes()
                weakref.finalize(storage, self.live.pop, key, None)
        self.peak = max(self.peak, sum(self.live.values()))


def _tensors(
    inputs: Sequence[torch.Tensor] | None, shapes: list[tuple[int, ...]]
) -> tuple[torch.Tensor, ...]:
    import torch

    if inputs is not None:
        return tuple(inputs)
    return tuple(torch.zeros(shape, device='meta') for shape in shapes)


def weightless_twin(module: nn.Module, device: str | torch.device) -> nn.Module:
    """A copy on another device whose weights take no memory: shared, or of no defined value."""
    import torch
    from torch import nn

    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        moved = parameter
        if parameter.device != torch.device(device):
            empty = torch.empty_like(parameter, device=device)
            moved = nn.Parameter(empty, parameter.requires_grad)
        memo[id(parameter)] = moved
    for buffer in module.buffers():
        # Running statistics change in a forward pass: buffers are never shared.
        same = buffer.device == torch.device(device)
        memo[id(buffer)] = buffer.clone() if same else torch.zeros_like(buffer, device=device)
    return copy.deepcopy(module, memo)


def _run(
    module: nn.Module,
    given: _Given,
    run: Callable[[nn.Module, tuple[torch.Tensor, ...]], Any],
) -> Any:
    """Runs a twin of a module on the meta device, or where its weights are if it cannot there.

    Raises:
        ValueError: It runs on neither.
    """
    devices = {tensor.device for tensor in (*module.parameters(), *module.buffers())}
    real = [device for device in devices or ('cpu',) if str(device) != 'meta']
    for device in ('meta', *real[:1]):
        try:
            return run(
                weightless_twin(module, device),
                tuple(on_device(tensor, device) for tensor in given.inputs),
            )
        except FOREIGN_ERRORS as error:
            reason = error
    shapes = ', '.join(str(tuple(tensor.shape)) for tensor in given.inputs)
    said = f'{type(module).__name__} does not run on an input of shape {shapes}'
    raise UsageError(f'{said}: {one_line(reason):.300}') from reason


def on_device(tensor: torch.Tensor, device: str | torch.device) -> torch.Tensor:
    """An input moved to a device; one on the meta device, which stands for any, becomes zeros."""
    import torch

    if tensor.is_meta:
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)
    return tensor.to(device)


def _tally(module: nn.Module, given: _Given, biased: bool) -> _Tally:
    """Runs a module once without gradients and looks at every operation."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    formulas = matrix_formulas()

    def tensors_in(tree: Any) -> list[torch.Tensor]:
        return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]

    class Watch(TorchDispatchMode):
        def __init__(self, tally: _Tally) -> None:
            super().__init__()
            self.tally = tally

        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
        ) -> Any:
            kwargs = kwargs or {}
            packet = getattr(func, 'overloadpacket', func)
            name = getattr(packet, '__name__', str(packet)).removesuffix('_')
            if name in _SHAPE_KEEPING and args and args[0].is_meta:
                # On the meta device these are slow Python, for the shape of their input.
                in_place = getattr(packet, '__name__', '').endswith('_')
                output = args[0] if in_place else torch.empty_like(args[0])
                self.tally.hold([output])
                return output
            formula = formulas.get(name)
            if formula is None and not name.startswith('max_pool') and hasattr(func, 'decompose'):
                with self:
                    output = func.decompose(*args, **kwargs)
                if output is not NotImplemented:
                    return output
            output = func(*args, **kwargs)
            self.tally.add(name, formula, args, output)
            self.tally.hold(tensors_in(output))
            return output

    def run(twin: nn.Module, images: tuple[torch.Tensor, ...]) -> _Tally:
        tally = _Tally(biased)
        twin.eval()
        for name, part in twin.named_modules():
            part.register_forward_pre_hook(lambda *_, name=name: tally.running.append(name))
            part.register_forward_hook(tally.leave)
        # The storages of weights are not counted as activations.
        weights = [*twin.parameters(), *twin.buffers()]
        tally.weights = {tensor.untyped_storage()._cdata for tensor in weights}
        tally.hold(images)
        fast_path = torch.backends.mha.get_fastpath_enabled()
        # It hides the attention of nn.MultiheadAttention in one operation.
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with torch.inference_mode(), given.mode(), Watch(tally):
                given.run(twin, images)
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
        return tally

    return _run(module, given, run)


def _kept_for_backward(module: nn.Module, given: _Given) -> int:
    """Bytes that a forward pass in training mode keeps, see ModuleCost."""
    import torch
    from torch.autograd.graph import saved_tensors_hooks

    def run(twin: nn.Module, images: tuple[torch.Tensor, ...]) -> int:
        twin.train()
        weights = [*twin.parameters(), *twin.buffers()]
        ignored = {tensor.untyped_storage()._cdata for tensor in weights}
        kept: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: torch.Tensor) -> None:
            storage = tensor.untyped_storage()
            if storage._cdata not in ignored:
                kept[storage._cdata] = storage

        with torch.enable_grad(), saved_tensors_hooks(keep, lambda _: None), given.mode():
            given.run(twin, images)
        return sum(storage.nbytes() for storage in kept.values())

    return _run(module, given, run)


def _part_names(module: nn.Module) -> list[str]:
    """Prefixes of the parts: children of the backbone and of the model, lists one by one."""
    from torch import nn

    names = []

    def add(name: str, part: nn.Module) -> None:
        children = [child for child, _ in part.named_children()]
        if name == 'backbone' and children:
            for child, inner in part.named_children():
                add(f'backbone.{child}', inner)
        elif isinstance(part, nn.ModuleList):
            names.extend(f'{name}.{child}' for child in children)
        names.append(name)

    for name, part in module.named_children():
        add(name, part)
    return names


def _by_part(module: nn.Module, tally: _Tally) -> dict[str, Cost]:
    names = _part_names(module)

    def part_of(name: str) -> str:
        matching = [part for part in names if name == part or name.startswith(f'{part}.')]
        return max(matching, key=len, default=ITSELF)

    totals = {name: Cost() for name in [ITSELF, *names]}
    for name, parameter in module.named_parameters():
        totals[part_of(name)] += Cost(params=parameter.numel())
    for name in {*tally.flops, *tally.acts}:
        totals[part_of(name)] += Cost(flops=tally.flops[name], acts=tally.acts[name])
    return {name: cost for name, cost in totals.items() if cost != Cost()}
