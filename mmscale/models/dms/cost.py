"""Cost of a network under the masks of differentiable model scaling: a polynomial of counts."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from mmscale.cost import Cost, count_layers

if TYPE_CHECKING:
    from mmscale.models.dms.groups import ChannelGroup, ChannelGroups

# Kinds of groups that attention's own work depends on.
ATTENTION_KINDS = ('heads', 'qk_size', 'v_size', 'head_size')

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


def _sum(polynomials: Iterable[Polynomial]) -> Polynomial:
    result = Polynomial()
    for polynomial in polynomials:
        for gates, value in polynomial.items():
            result[gates] += value
    return result


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
    inputs and outputs that stay (a depthwise layer: of its outputs alone; attention: of its heads,
    scores also of the size of queries and keys, results of that of values), times the masks of
    the residual block that it lies in. All of it is one polynomial with few terms, so that a step
    evaluates it with a handful of operations. At counts of whole elements it is exact: the pruned
    network's own counts.

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
        repeated = self._repeated()
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
                if name in repeated:
                    flops, acts = (_product(part, repeated[name]) for part in (flops, acts))
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

    def _repeated(self) -> dict[str, Polynomial]:
        """Share of the heads, for layers that run on each head by itself."""
        numbers = {
            member.module: number
            for number, group in enumerate(self._groups.widths)
            if group.kind == 'heads'
            for member in group.members
        }
        found = {}
        for group in self._groups.widths:
            heads = [numbers[name] for name in group.layers if name in numbers]
            if group.kind not in ATTENTION_KINDS[1:] or not heads:
                continue
            share = Polynomial({(heads[0],): 1 / self._sizes[heads[0]]})
            for member in group.members:
                if member.role == 'through' and member.module not in numbers:
                    found[member.module] = share
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
        """Shares of the flops and acts of attention that a module computes itself.

        Scores are sums over the places of queries and keys, results have the places of values.
        """
        one = Polynomial({(): 1.0})
        inside = defaultdict(list)
        after = None
        for number, group in enumerate(self._groups.widths):
            is_inside = any(layer.startswith(f'{name}.') for layer in group.layers)
            if group.kind in ATTENTION_KINDS and is_inside:
                inside[group.kind].append((number, group))
                # The layer after attention: as many tokens come out of it as out of attention.
                inputs = (member.module for member in group.members if member.role == 'in')
                after = after or next(inputs, None)

        def kept(kind: str) -> Polynomial:
            return _sum(Polynomial({(number,): 1 / group.size}) for number, group in inside[kind])

        heads = kept('heads') if inside['heads'] else one
        tied = kept('head_size') if inside['head_size'] else one
        places = {}
        for kind in ('qk_size', 'v_size'):
            multiples = [_multiple(group, name) for _, group in inside[kind]]
            places[kind] = _sum(
                Polynomial({(number,): float(multiple)})
                for (number, _), multiple in zip(inside[kind], multiples, strict=True)
            )
        if after is None:
            size = _scaled(places['qk_size'], 1 / max(1, self._places(places['qk_size'])))
            if not inside['qk_size'] or not any(modules[name].children()):
                # A rotary embedding: all it gives is of places.
                flops = size if inside['qk_size'] else one
                return flops, flops
            # Queries and keys alone can go: half of the products are of values, of their size.
            return _sum((_scaled(size, 0.5), Polynomial({(): 0.5}))), one
        inputs, outputs, _ = _widths(modules[after])
        results = costs[after].acts / outputs * inputs
        scores = costs[name].acts - results
        products = costs[name].flops / scores  # places of queries and of values, together
        of_keys, of_values = (self._places(places[kind]) for kind in ('qk_size', 'v_size'))
        if not of_values:
            of_values = products - of_keys if of_keys else products / 2
            places['v_size'] = Polynomial({(): of_values})
        if not of_keys:
            places['qk_size'] = Polynomial({(): products - of_values})
        flops = _scaled(_sum((places['qk_size'], places['v_size'])), 1 / products)
        share = results / costs[name].acts
        kept_results = _product(heads, tied, _scaled(places['v_size'], 1 / of_values))
        acts = _sum((_scaled(heads, 1 - share), _scaled(kept_results, share)))
        return _product(heads, tied, flops), acts

    def _places(self, polynomial: Polynomial) -> float:
        """Value of a polynomial of the whole network."""
        return sum(
            value * math.prod(self._sizes[gate] for gate in gates)
            for gates, value in polynomial.items()
        )


def _multiple(group: ChannelGroup, name: str) -> int:
    """How many places in a head an element of a group is, in an attention of that name."""
    return next((multiple for module, _, multiple in group.counts if module == name), 1)


def _share(parts: Sequence[tuple[int, np.ndarray]], sizes: Sequence[int], size: int) -> Polynomial:
    """Share of a dimension's `size` channels that stays.

    Channels of several groups (heads, and places in them) stay where all of them say so.
    """
    owners: list[tuple[int, ...]] = [()] * size
    for number, indices in parts:
        for channel in indices.flat:
            if number not in owners[channel]:
                owners[channel] = (*owners[channel], number)
    share = Polynomial()
    for gates, channels in Counter(owners).items():
        share[gates] = channels / size / math.prod(sizes[gate] for gate in gates)
    return share
