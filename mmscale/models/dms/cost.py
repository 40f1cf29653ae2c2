"""Cost of a network under the masks of differentiable model scaling: a polynomial of counts."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from mmscale.cost import Cost, count_layers

if TYPE_CHECKING:
    from mmscale.models.dms.groups import ChannelGroups

# A polynomial of the gates' counts: coefficient by the (sorted) numbers of the gates multiplied.
Polynomial = Counter[tuple[int, ...]]


def _product(*factors: Polynomial) -> Polynomial:
    result = Polynomial({(): 1.0})
    for factor in factors:
        expanded = Polynomial()
        for left, a in result.items():
            for right, b in factor.items():
                expanded[tuple(sorted(left + right))] += a * b
        result = expanded
    return result


def _scaled(polynomial: Polynomial, factor: float) -> Polynomial:
    return Polynomial({gates: value * factor for gates, value in polynomial.items()})


def _widths(module: nn.Module) -> tuple[int, int, bool] | None:
    """Inputs and outputs of a layer, and whether each output has an input of its own."""
    if isinstance(module, nn.modules.conv._ConvNd):
        depthwise = module.groups > 1 and module.groups == module.in_channels
        return module.in_channels, module.out_channels, depthwise
    weight = getattr(module, 'weight', None)
    if not isinstance(weight, nn.Parameter):
        return None
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features, False
    if isinstance(module, nn.Embedding):
        return 1, module.embedding_dim, True
    if weight.dim() == 1:
        return weight.numel(), weight.numel(), True
    if weight.dim() == 2:  # the transposed linear layer of GPT-2
        return weight.shape[0], weight.shape[1], False
    return None


class MaskedCost(nn.Module):
    """Flops, params and acts of a network as a function of what its gates keep.

    Every layer costs what :func:`mmscale.cost.count_module` counts of it times the shares of its
    inputs and outputs that stay (a depthwise layer: of its outputs alone; attention: of its heads
    and of their size), times the masks of the residual block that it lies in. All of it is one
    polynomial with few terms, so that a step evaluates it with a handful of operations. At counts
    of whole elements it is exact: the pruned network's own counts.

    Args:
        model: The network, before it is masked.
        groups: What shares a width, and which blocks can go.
        inputs: Positional arguments of one forward pass.

    Raises:
        ValueError: The model does not run on the inputs.
    """

    def __init__(
        self, model: nn.Module, groups: ChannelGroups, inputs: Sequence[torch.Tensor]
    ) -> None:
        super().__init__()
        self._groups = groups
        self._sizes = [group.size for group in groups.widths]
        self._sizes += [1 for depth in groups.depths for _ in depth.blocks]
        terms: dict[tuple[int, ...], list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
        for metric, polynomial in self._polynomials(model, inputs):
            for gates, value in polynomial.items():
                terms[gates][metric] += value
        longest = max(map(len, terms))
        one = len(self._sizes)  # stands for a factor of 1
        factors = [[*gates, *[one] * (longest - len(gates))] for gates in terms]
        self.register_buffer('_factors', torch.tensor(factors), persistent=False)
        values = torch.tensor(list(terms.values()), dtype=torch.float64)
        self.register_buffer('_values', values, persistent=False)

    def forward(self, counts: torch.Tensor) -> torch.Tensor:
        """Flops, params and acts, shape (3,), differentiable.

        Args:
            counts: How many elements each group keeps, then 0 to 1 for each removable block, in
                the order of the groups; shape (groups + blocks,).
        """
        counts = torch.cat([counts.double(), counts.new_ones(1, dtype=torch.float64)])
        return counts[self._factors].prod(dim=1) @ self._values

    def count(self, counts: Sequence[int]) -> Cost:
        """The exact cost of whole counts, see :meth:`forward`."""
        counts = torch.tensor(list(counts), dtype=torch.float64, device=self._values.device)
        return Cost(*(round(value) for value in self(counts).tolist()))

    @property
    def full(self) -> Cost:
        """The cost of the whole network."""
        return self.count(self._sizes)

    def _polynomials(
        self, model: nn.Module, inputs: Sequence[torch.Tensor]
    ) -> Iterator[tuple[int, Polynomial]]:
        """What each layer adds to flops (0), params (1) and acts (2)."""
        dimensions = self._dimensions()
        blocks = self._blocks()
        modules = dict(model.named_modules())

        def share(owner: str, dimension: str | int, size: int) -> Polynomial:
            return _share(dimensions.get((owner, dimension), ()), self._sizes, size)

        costs = count_layers(model, inputs=inputs)
        for name, cost in costs.items():
            widths = _widths(modules[name])
            if widths is not None:
                outputs = share(name, 'out', widths[1])
                flops = outputs
                if not widths[2]:
                    flops = _product(outputs, share(name, 'in', widths[0]))
                acts = outputs
            else:
                flops, acts = self._attention(name, costs, modules)
            yield 0, _product(blocks(name), _scaled(flops, cost.flops))
            yield 2, _product(blocks(name), _scaled(acts, cost.acts))
        for name, parameter in model.named_parameters():
            owner, _, last = name.rpartition('.')
            widths = _widths(modules[owner])
            if widths is None:
                sizes = parameter.shape
                factors = [share(name, i - len(sizes), size) for i, size in enumerate(sizes)]
            else:
                factors = [share(owner, 'out', widths[1])]
                if last == 'weight' and not widths[2]:
                    factors.append(share(owner, 'in', widths[0]))
            yield 1, _product(blocks(name), _scaled(_product(*factors), parameter.numel()))

    def _dimensions(self) -> dict[tuple[str, str | int], list[tuple[int, np.ndarray]]]:
        """Groups, and the channels of their elements, of each dimension of each layer."""
        found = defaultdict(list)
        for number, group in enumerate(self._groups.widths):
            for member in group.members:
                if member.dim is not None:
                    found[member.module, member.dim].append((number, member.indices))
                    continue
                for role in ('in', 'out'):
                    if member.role in (role, 'through', 'norm'):
                        found[member.module, role].append((number, member.indices))
        return found

    def _blocks(self) -> Callable[[str], Polynomial]:
        """A function that gives the mask of the block which a layer lies in."""
        numbers = {}
        for depth in self._groups.depths:
            for block in depth.blocks:
                numbers[block] = len(self._groups.widths) + len(numbers)

        def mask(name: str) -> Polynomial:
            gates = [number for block, number in numbers.items() if name.startswith(f'{block}.')]
            return Polynomial({tuple(gates): 1.0})

        return mask

    def _attention(
        self, name: str, costs: Mapping[str, Cost], modules: Mapping[str, nn.Module]
    ) -> tuple[Polynomial, Polynomial]:
        """Shares of the flops and acts of attention that a module computes itself."""
        heads = size = Polynomial({(): 1.0})
        result = 0.0
        for number, group in enumerate(self._groups.widths):
            inside = [m for m in group.members if m.module.startswith(f'{name}.')]
            if group.kind not in ('heads', 'head_size') or not inside:
                continue
            share = Polynomial({(number,): 1 / group.size})
            if group.kind == 'heads':
                heads = share
            else:
                size = share
            # The layer after attention: as many tokens come out of it as out of attention.
            after = next((member.module for member in inside if member.role == 'in'), None)
            if after is None:  # a rotary embedding: all it gives is of that size
                result = 1.0
                continue
            inputs, outputs, _ = _widths(modules[after])
            result = costs[after].acts / outputs * inputs / costs[name].acts
        flops = _product(heads, size)
        # Results are of all heads and their size; scores have heads alone.
        return flops, _scaled(heads, 1 - result) + _scaled(flops, result)


def _share(parts: Sequence[tuple[int, np.ndarray]], sizes: Sequence[int], size: int) -> Polynomial:
    """Share of a dimension's `size` channels that stays.

    Channels of several groups (heads, and places in them) stay where all of them say so.
    """
    owners: list[tuple[int, ...]] = [()] * size
    for number, indices in parts:
        for channel in indices.flat:
            owners[channel] = (*owners[channel], number)
    share = Polynomial()
    for gates, channels in Counter(owners).items():
        share[gates] = channels / size / math.prod(sizes[gate] for gate in gates)
    return share
