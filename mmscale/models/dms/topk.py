"""The differentiable top-k operator of DMS (differentiable model scaling)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from mmscale.arch.checks import choice, integer, number

IMPORTANCES = ('taylor', 'index', 'l1', 'snip', 'fisher')
NORMALISATIONS = ('rank', 'minmax', 'none')


class DifferentiableTopK(nn.Module):
    """Chooses the most important of n elements, and learns by gradient how many.

    With elements ranked by importance, ascending from 0 and ties in order of their index,
    ``mask_i = sigmoid(hardness * (rank_i / n - pruning_ratio))`` (DMS, section 3.1, Eq. 2-3).
    Ties count as ranked, so that a ratio has a gradient before anything is known of importance.

    Args:
        n: Number of channels, heads or blocks.
        hardness: Lambda, the slope of the mask; by default the number of elements, as the paper
            has it for widths. It takes four times as much for the few blocks and heads.
        importance: How importance follows from the mask m and the gradient g of the task loss
            with respect to it: ``taylor`` is (m g)^2, ``snip`` |m g| and ``fisher`` g^2, all as
            moving averages; ``l1`` is set from outside (:meth:`set_importance`); ``index`` keeps
            the first elements longest.
        decay: Of the moving average.
        minimum: How many of the n must stay; 0 lets all of them go.
        divisor: Runs of so many neighbours are one element, kept or dropped together.
        midpoint: Whether an element counts as the middle of its place, ``(rank + 1/2) / n``. As
            Eq. 2 has it the last one is half off at a ratio of 0, which matters where elements
            are few; with midpoints ``round((1 - ratio) n)`` elements stay (section 3.1).
        normalise: What the ratio is compared with: the ``rank``; for ablations the importance
            itself (``none``, Table 11), or scaled to 0..1 (``minmax``).

    Attributes:
        pruning_ratio: Learned share of elements to drop, a scalar in [0, 1].
        importance: Importance of each of the n, shape (n,).
        hard: Whether the mask is frozen at 0 and 1, see :meth:`harden`; from the start where all
            elements have to stay.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        n: int,
        hardness: float | None = None,
        importance: str = 'taylor',
        decay: float = 0.99,
        minimum: int = 1,
        divisor: int = 1,
        midpoint: bool = False,
        normalise: str = 'rank',
    ) -> None:
        super().__init__()
        integer('n', n)
        integer('minimum', minimum, 0, n)
        integer('divisor', divisor)
        choice('importance', importance, IMPORTANCES)
        choice('normalise', normalise, NORMALISATIONS)
        number('decay', decay, least=0, below=1)
        if hardness is not None:
            number('hardness', hardness, above=0)
        self.n = n
        self.elements = -(-n // divisor)
        self.hardness = float(self.elements if hardness is None else hardness)
        self.kind = importance
        self.normalise = normalise
        self.decay = decay
        self.divisor = divisor
        self.offset = 0.5 if midpoint else 0.0
        # The last run may be shorter, so this is the number that is sure to hold enough.
        self.minimum = min(self.elements, -(-minimum // divisor))
        self.pruning_ratio = nn.Parameter(torch.zeros(()))
        start = torch.arange(n - 1, -1, -1.0) if importance == 'index' else torch.zeros(n)
        self.register_buffer('importance', start)
        # What nothing of can go is whole from the start, and not half off at a ratio of 0.
        self.register_buffer('hard', torch.tensor(self.minimum == self.elements))
        self.register_buffer('hard_mask', torch.ones(n))
        self.register_buffer('_element', torch.arange(n) // divisor, persistent=False)

    def extra_repr(self) -> str:
        """What printing a model shows of this operator."""
        return f'{self.n}, hardness={self.hardness:g}, importance={self.kind!r}'

    def _of_elements(self) -> torch.Tensor:
        """Importance of each element, shape (elements,)."""
        if self.divisor == 1:
            return self.importance
        zeros = self.importance.new_zeros(self.elements)
        total = zeros.index_add(0, self._element, self.importance)
        return total / zeros.index_add(0, self._element, torch.ones_like(self.importance))

    def ranks(self) -> torch.Tensor:
        """Rank of each element, 0 for the least important; shape (elements,)."""
        order = torch.argsort(self._of_elements(), stable=True)
        return torch.empty_like(order).scatter_(
            0, order, torch.arange(order.numel(), device=order.device)
        )

    def places(self) -> torch.Tensor:
        """What the pruning ratio is compared with, for each element; shape (elements,)."""
        if self.normalise == 'rank':
            return (self.ranks().to(self.pruning_ratio.dtype) + self.offset) / self.elements
        importance = self._of_elements()
        if self.normalise == 'minmax':
            low, high = importance.aminmax()
            importance = (importance - low) / (high - low).clamp(min=1e-30)
        return importance.to(self.pruning_ratio.dtype)

    def forward(self) -> torch.Tensor:
        """The mask of the n channels, heads or blocks, shape (n,)."""
        soft = torch.sigmoid(self.hardness * (self.places() - self.pruning_ratio))
        return torch.where(self.hard, self.hard_mask, soft[self._element])

    @torch.no_grad()
    def keep_mask(self) -> torch.Tensor:
        """Which of the n stay: those whose mask is 0.5 or more, and at least the minimum."""
        # The places that the mask is computed from, so that both agree in the last bit.
        stays = self.places() - self.pruning_ratio >= 0
        stays = stays | (self.ranks() >= self.elements - self.minimum)
        return torch.where(self.hard, self.hard_mask > 0, stays[self._element])

    @torch.no_grad()
    def ratio_of_one_more(self) -> torch.Tensor:
        """The ratio at which one element more stays; 0 where all do."""
        places = self.places()
        return torch.where(places < self.pruning_ratio, places, 0).max()

    @torch.no_grad()
    def ratio_of_one_less(self) -> torch.Tensor:
        """The ratio at which one element less stays; 1 where that leaves none."""
        places = self.places()
        kept = places[places >= self.pruning_ratio].sort().values
        return kept[1] if len(kept) > 1 else torch.ones_like(self.pruning_ratio)

    @property
    def keep_indices(self) -> torch.Tensor:
        """Indices of those that stay, ascending."""
        return self.keep_mask().nonzero().flatten()

    @property
    def keep_count(self) -> int:
        """How many of the n stay."""
        return int(self.keep_mask().sum())

    @torch.no_grad()
    def clamp(self) -> None:
        """Puts the ratio back into its range; to be called after every optimizer step."""
        self.pruning_ratio.clamp_(0, 1 - self.minimum / self.elements)

    @torch.no_grad()
    def harden(self) -> None:
        """Freezes the mask at 0 and 1; ratio and importance have no more effect on it."""
        self.hard_mask.copy_(self.keep_mask())
        self.hard.fill_(True)

    @torch.no_grad()
    def update_importance(
        self, mask_gradient: torch.Tensor, mask: torch.Tensor | None = None
    ) -> None:
        """Takes one optimizer step's gradient into the moving average (Eq. 4).

        Args:
            mask_gradient: Gradient of the task loss with respect to the mask, without the loss
                scale of AMP; shape (n,). Values that are not finite leave everything as it is.
            mask: The mask that it belongs to; by default the present one.
        """
        if self.kind in ('index', 'l1'):
            return
        mask = self() if mask is None else mask
        average = self._average(self.importance, mask_gradient.to(self.importance), mask)
        usable = torch.isfinite(average).all() & ~self.hard
        self.importance.copy_(torch.where(usable, average, self.importance))

    def _average(
        self, importance: torch.Tensor, gradient: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """The moving average one step on."""
        if self.kind == 'taylor':
            new = (mask * gradient) ** 2
        elif self.kind == 'snip':
            new = (mask * gradient).abs()
        else:
            new = gradient**2
        return self.decay * importance + (1 - self.decay) * new

    @torch.no_grad()
    def set_importance(self, importance: torch.Tensor) -> None:
        """Replaces the importance, as for ``l1``; shape (n,)."""
        self.importance.copy_(torch.where(self.hard, self.importance, importance))


class TopKStack:
    """What several gates do, in a handful of operations: their own numbers, in less time.

    Gates are many and small, so that one after the other they would cost more than a layer.

    Args:
        gates: The gates, all on one device.
    """

    def __init__(self, gates: Iterable[DifferentiableTopK]) -> None:
        self.gates = list(gates)
        self.sizes = [gate.n for gate in self.gates]
        self._tables: tuple[torch.Tensor, ...] | None = None

    def __call__(self) -> torch.Tensor:
        """Masks of all gates, one after the other; shape (sum of ``sizes``,)."""
        importance = torch.cat([gate.importance for gate in self.gates])
        owner, hardness, in_order = self._tables_like(importance)
        if all(gate.normalise == 'rank' and gate.divisor == 1 for gate in self.gates):
            # Sorted by importance within each gate: what is in order are its places.
            order = torch.argsort(importance, stable=True)
            order = order[torch.argsort(owner[order], stable=True)]
            places = torch.empty_like(in_order).scatter_(0, order, in_order)
        else:
            places = torch.cat([gate.places()[gate._element] for gate in self.gates])
        ratios = torch.stack([gate.pruning_ratio for gate in self.gates])
        soft = torch.sigmoid(hardness * (places - ratios[owner]))
        hard = torch.stack([gate.hard for gate in self.gates])
        return torch.where(hard[owner], torch.cat([gate.hard_mask for gate in self.gates]), soft)

    @torch.no_grad()
    def update_importance(
        self, mask_gradients: torch.Tensor, masks: torch.Tensor, taken: Sequence[bool]
    ) -> None:
        """As :meth:`DifferentiableTopK.update_importance` of every gate.

        Args:
            mask_gradients: One gate's after the other's, shape (sum of ``sizes``,).
            masks: The same.
            taken: Which gates take part; of the others nothing is read.
        """
        importance = torch.cat([gate.importance for gate in self.gates])
        owner = self._tables_like(importance)[0]
        gradients, average = mask_gradients.to(importance), importance
        # One pass for each way of averaging, of which there is one as a rule.
        ways = {(gate.kind, gate.decay): gate for gate in self.gates}
        for way, first in ways.items():
            if first.kind in ('index', 'l1'):
                continue
            one = first._average(importance, gradients, masks)
            if len(ways) > 1:
                is_its = [(gate.kind, gate.decay) == way for gate in self.gates]
                one = torch.where(torch.tensor(is_its, device=owner.device)[owner], one, average)
            average = one
        if average is importance:
            return
        broken = importance.new_zeros(len(self.gates))
        broken.index_add_(0, owner, (~torch.isfinite(average)).to(broken))
        usable = (broken == 0) & ~torch.stack([gate.hard for gate in self.gates])
        usable &= torch.tensor(taken, device=usable.device)
        importance = torch.where(usable[owner], average, importance)
        parts = importance.split(self.sizes)
        torch._foreach_copy_([gate.importance for gate in self.gates], list(parts))

    @torch.no_grad()
    def slopes(self, mask_gradients: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Slopes of a loss on the pruning ratios, from those on the masks; shape (gates,).

        Args:
            mask_gradients: One gate's after the other's, shape (sum of ``sizes``,).
            masks: The same; frozen ones have no slope, as theirs are 0 and 1.
        """
        owner, hardness, _ = self._tables_like(masks)
        each = -hardness * masks * (1 - masks) * mask_gradients
        return each.new_zeros(len(self.gates)).index_add(0, owner, each)

    @torch.no_grad()
    def clamp(self) -> None:
        """As :meth:`DifferentiableTopK.clamp` of every gate."""
        ratios = [gate.pruning_ratio for gate in self.gates]
        torch._foreach_clamp_min_(ratios, 0)
        most = [1 - gate.minimum / gate.elements for gate in self.gates]
        torch._foreach_clamp_max_(ratios, most)

    def _tables_like(self, importance: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self._tables is None or self._tables[0].device != importance.device:
            self._tables = self._make_tables(importance)
        return self._tables

    def _make_tables(self, like: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The gate and the hardness of each element, and the places in ascending order."""
        device = like.device
        sizes = torch.tensor(self.sizes, device=device)
        owner = torch.arange(len(self.gates), device=device).repeat_interleave(sizes)
        hardness = like.new_tensor([gate.hardness for gate in self.gates])[owner]
        # Computed as a gate does, so that both agree in the last bit.
        places = [
            (torch.arange(gate.n, device=device).to(like.dtype) + gate.offset) / gate.elements
            for gate in self.gates
        ]
        return owner, hardness, torch.cat(places)
