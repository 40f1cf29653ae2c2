"""Projection of what a search by gradient has learned onto its budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from mmscale.errors import UsageError
from mmscale.models.dms.topk import DifferentiableTopK

# Share of the budget that may be left of it without a word.
_LITTLE = 0.01


@dataclass(frozen=True)
class Projection:
    """What the final projection onto the budget changed.

    Attributes:
        metric: What the budget is of.
        budget: The budget.
        before: Value of the metric as the search left it.
        after: Value after the projection.
        shift: What was added to the pruning ratio of every width.
        blocks: How many blocks went, below 0 how many came back.
    """

    metric: str
    budget: float
    before: float
    after: float
    shift: float
    blocks: int = 0

    @property
    def unused(self) -> float:
        """Share of the budget that is left."""
        return 1 - self.after / self.budget

    @property
    def warning(self) -> str | None:
        """What is to be said of a budget that is not used up; None where it is."""
        if self.unused <= _LITTLE:
            return None
        return (
            f'{self.unused:.1%} of the budget {self.metric}={self.budget:.6g} stays unused: every '
            'element or block that could come back costs more than that'
        )

    def __str__(self) -> str:
        blocks = f', {abs(self.blocks)} blocks {"went" if self.blocks > 0 else "came back"}'
        return (
            f'{self.metric} {self.before:.6g} -> {self.after:.6g}, '
            f'{self.after / self.budget - 1:+.2%} of the budget {self.budget:.6g}, '
            f'by a shift of {self.shift:+.4f} of all pruning ratios of widths'
            f'{blocks * bool(self.blocks)}'
        )


class Projector:
    """Moves gates until what they keep costs no more than a budget, and hardly less.

    Args:
        widths: Gates of the groups of channels, heads and so on.
        depths: Gates of the groups of blocks.
        value: What the network of the moment costs.
        goal: The budget.
    """

    def __init__(
        self,
        widths: Sequence[DifferentiableTopK],
        depths: Sequence[DifferentiableTopK],
        value: Callable[[], float],
        goal: float,
    ) -> None:
        self._widths = list(widths)
        self._depths = list(depths)
        self._value = value
        self._goal = goal

    @torch.no_grad()
    def choose_blocks(self) -> int:
        """Freezes the blocks so that the widths can meet the budget; how many went by that.

        Where the smallest widths would be over it, the blocks that are nearest to going go; where
        all widths together are below it, those nearest to coming back do. Without widths the
        blocks alone come down to the budget, and then as many back as it has room for.
        """
        chosen = [gate.keep_mask() for gate in self._depths]
        for gate in self._depths:
            gate.hard.fill_(gate.minimum == gate.elements)
        least, most = self._range()
        while least > self._goal and self._move_block(self._one_less, lambda: True):
            least, most = self._range()
        while most < self._goal and self._move_block(
            self._one_more, lambda: self._range()[0] <= self._goal
        ):
            least, most = self._range()
        for gate in self._depths:
            gate.harden()
        kept = [gate.keep_mask() for gate in self._depths]
        return sum(int(was.sum() - now.sum()) for was, now in zip(chosen, kept, strict=True))

    @torch.no_grad()
    def fit_widths(self) -> float:
        """Moves all ratios of widths by one common shift, the smallest that meets the budget.

        As it takes elements of several widths at once, what it leaves of the budget then goes to
        the widths that are nearest to their next element: one element each, and more only where
        over 1 % of the budget would be left.

        Returns:
            The shift.

        Raises:
            UsageError: The widths cannot reach the budget with the blocks that are left.
        """
        start = [float(gate.pruning_ratio) for gate in self._widths]

        def fits(shift: float) -> bool:
            for gate, ratio in zip(self._widths, start, strict=True):
                gate.pruning_ratio.fill_(ratio + shift)
                gate.clamp()
            return self._value() <= self._goal

        low, high = -1.0, 1.0
        if not self._widths:
            return 0.0
        if fits(low):
            high = low
        elif not fits(high):
            raise UsageError(
                f'the widths cannot reach the budget {self._goal:.6g} with the blocks that are '
                f'left: their smallest is {self._value():.6g}'
            )
        else:
            for _ in range(30):
                middle = (low + high) / 2
                low, high = (low, middle) if fits(middle) else (middle, high)
            fits(high)
        # A pass is enough but for networks so small that one element is much of the budget.
        while self._fill() and self._value() < (1 - _LITTLE) * self._goal:
            pass
        return high

    def _fill(self) -> bool:
        """Gives widths one element more each where the budget allows; whether it did any."""
        before = self._value()
        for gate, ratio in self._one_more(self._widths):
            was = gate.pruning_ratio.clone()
            gate.pruning_ratio.copy_(ratio)
            if self._value() > self._goal:
                gate.pruning_ratio.copy_(was)
        return self._value() != before

    def _range(self) -> tuple[float, float]:
        """Cost with the blocks of the moment at the smallest and at whole widths."""
        ratios = [gate.pruning_ratio.clone() for gate in self._widths]
        found = []
        for extreme in (1.0, 0.0):
            for gate in self._widths:
                gate.pruning_ratio.fill_(extreme)
                gate.clamp()
            found.append(self._value())
        for gate, ratio in zip(self._widths, ratios, strict=True):
            gate.pruning_ratio.copy_(ratio)
        return found[0], found[1]

    def _move_block(
        self,
        ratios_of: Callable[[Sequence[DifferentiableTopK]], list],
        fits: Callable[[], bool],
    ) -> bool:
        """Moves one block, the nearest that fits; whether there was one."""
        for gate, ratio in ratios_of(self._depths):
            was = gate.pruning_ratio.clone()
            gate.pruning_ratio.copy_(ratio)
            if fits():
                return True
            gate.pruning_ratio.copy_(was)
        return False

    @staticmethod
    def _one_more(gates: Sequence[DifferentiableTopK]) -> list:
        """Gates that can keep one element more, and the ratios at which they do, nearest first."""
        found = [(gate, gate.ratio_of_one_more()) for gate in gates if gate.keep_count < gate.n]
        return sorted(found, key=lambda pair: float(pair[0].pruning_ratio - pair[1]))

    @staticmethod
    def _one_less(gates: Sequence[DifferentiableTopK]) -> list:
        """Gates that can lose one element more, and the ratios at which they do, nearest first."""
        found = [
            (gate, gate.ratio_of_one_less())
            for gate in gates
            if gate.keep_count > gate.minimum * gate.divisor
        ]
        return sorted(found, key=lambda pair: float(pair[1] - pair[0].pruning_ratio))
