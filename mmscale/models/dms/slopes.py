"""What pulls at pruning ratios: the slopes of the task's loss and of the resource loss."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn


class SlopeSums(nn.Module):
    """Sums of both losses' slopes on each pruning ratio, over a search and since the last record.

    Sums and not magnitudes, so that the noise of batches cancels out. They are no part of a
    model's state: the DMSHook keeps them in checkpoints beside it.

    Args:
        gates: Number of ratios.

    Attributes:
        whole: Sums of all steps, of the task's loss and of the resource loss; shape (2, gates).
        recent: The same since the last record.
        steps: Number of the latter.
    """

    def __init__(self, gates: int) -> None:
        super().__init__()
        for name in ('whole', 'recent'):
            self.register_buffer(name, torch.zeros(2, gates, dtype=torch.float64), False)
        self.steps = 0

    @torch.no_grad()
    def add(self, of_task: torch.Tensor, of_both: torch.Tensor) -> None:
        """Counts one step's slopes of the task's loss and of both losses, shape (gates,) each.

        Steps with a slope that is not finite are left out, as AMP tries its loss scale out.
        """
        slopes = torch.stack([of_task, of_both - of_task]).double()
        slopes = torch.where(torch.isfinite(slopes).all(), slopes, 0)
        self.whole += slopes
        self.recent += slopes
        self.steps += 1

    def take_recent(self) -> list[list[float]]:
        """Mean slopes of task and resources by ratio since the last call, (gates, 2)."""
        means = (self.recent / max(self.steps, 1)).T.tolist()
        self.recent.zero_()
        self.steps = 0
        return means

    def state(self) -> dict[str, torch.Tensor | int]:
        """What a checkpoint keeps of the sums."""
        return {'whole': self.whole.clone(), 'recent': self.recent.clone(), 'steps': self.steps}

    def restore(self, state: Mapping[str, torch.Tensor | int]) -> None:
        """Takes the sums of a checkpoint.

        Raises:
            KeyError, RuntimeError, TypeError, ValueError: They are none, or of other ratios.
        """
        for name in ('whole', 'recent'):
            if state[name].shape != self.whole.shape:
                raise ValueError(f'{name} is of {state[name].shape[-1]} ratios')
        self.steps = int(state['steps'])
        self.whole.copy_(state['whole'])
        self.recent.copy_(state['recent'])

    def shares(self) -> list[float]:
        """The task's share of what pulled at each ratio over the search, 0 to 1.

        ``|task| / (|task| + |resources|)``; 0 where nothing pulled.
        """
        of_task, of_resources = self.whole.abs()
        both = (of_task + of_resources).clamp(min=torch.finfo(torch.float64).tiny)
        return (of_task / both).tolist()
