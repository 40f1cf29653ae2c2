"""Labels of channels: which of them are one, and which have to stay."""

from __future__ import annotations

import numpy as np
import torch

# The label of what has to stay: constants, and what is not followed.
FIXED = 0


class Labels:
    """Channels by numbers; those that are joined are one from there on.

    Attributes:
        reasons: Labels that have to stay, and why, in the order of their coming.
        leaving: Labels that reach an output of the model.
    """

    def __init__(self) -> None:
        self.size = FIXED + 1
        self.reasons: list[tuple[np.ndarray, str]] = []
        self.leaving: list[np.ndarray] = []
        self._joined: list[np.ndarray] = []

    def fresh(self, count: int) -> torch.Tensor:
        """New labels, shape (count,)."""
        self.size += count
        return torch.arange(self.size - count, self.size)

    def join(self, one: torch.Tensor, other: torch.Tensor, reason: str) -> None:
        """Makes pairs of labels one; what meets something that has to stay has to stay.

        Args:
            one: Labels, shape (count,).
            other: Labels that they meet, of the same shape.
            reason: Why those stay that meet something which has to.
        """
        pairs = torch.stack([one, other]).numpy()
        pairs = pairs[:, pairs[0] != pairs[1]]
        meets_fixed = (pairs == FIXED).any(0)
        self.fix(torch.from_numpy(pairs[:, meets_fixed].max(0)), reason)
        if not meets_fixed.all():
            self._joined.append(pairs[:, ~meets_fixed])

    def fix(self, labels: torch.Tensor, reason: str) -> None:
        """Has labels stay."""
        if labels.numel():
            self.reasons.append((labels.flatten().numpy(), reason))

    def leave(self, labels: torch.Tensor) -> None:
        """Notes that labels reach an output of the model."""
        self.leaving.append(labels.flatten().numpy())

    def classes(self) -> np.ndarray:
        """The smallest label of those that each is one with, shape (labels,)."""
        first = np.arange(self.size)
        if not self._joined:
            return first
        one, other = np.concatenate(self._joined, 1)
        while True:
            left, right = first[one], first[other]
            apart = left != right
            if not apart.any():
                return first
            low, high = np.minimum(left, right)[apart], np.maximum(left, right)[apart]
            np.minimum.at(first, high, low)
            while (first[first] != first).any():
                first = first[first]
