"""Candidates are predicted before they are scored: many are proposed, few are evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmscale.arch import Arch
from mmscale.search.record import Record
from mmscale.search.surrogate import FEWEST_SCORES, Surrogate

Floats = NDArray[np.float64]

# A surrogate is fitted anew when there are so many times as many scores.
_GROWTH = 1.03
# So many standard deviations count for a candidate: what is uncertain is worth a look.
EXPLORATION = 0.5
# A rank correlation is of so many candidates or more, where there are.
_RECENT = 8


class Preselection:
    """Predicts Archs from the scores that the search has asked for so far, and no others.

    So what it predicts is the same in a run that replays an archive, and on every rank.

    Args:
        record: The record of the search.
        seed: Seed of the surrogates.

    Attributes:
        compared: Of every candidate what was predicted before it was scored, and what was found.
    """

    def __init__(self, record: Record, seed: int = 0) -> None:
        self._record = record
        self._seed = seed
        self._fitted: tuple[int, Surrogate] | None = None
        self.compared: list[tuple[float, float]] = []

    @property
    def is_ready(self) -> bool:
        """Whether there are scores enough to predict from."""
        return len(self._record.scores) >= FEWEST_SCORES

    @property
    def _surrogate(self) -> Surrogate:
        scores = self._record.scores
        if self._fitted is None or len(scores) >= _GROWTH * self._fitted[0]:
            surrogate = Surrogate(list(scores), list(scores.values()), self._seed)
            self._fitted = len(scores), surrogate
        return self._fitted[1]

    def is_new(self, archs: Sequence[Arch]) -> bool:
        """Whether any of these has no score yet: else nothing would be learnt from them."""
        return any(arch not in self._record.scores for arch in archs)

    def predict(self, archs: Sequence[Arch]) -> tuple[Floats, Floats]:
        """Predicted scores and their standard deviations; of what is known, the scores and 0.

        Args:
            archs: The Archs.

        Returns:
            Each of shape (n,).
        """
        known = self._record.scores
        distinct = list(dict.fromkeys(arch for arch in archs if arch not in known))
        mean, deviation = self._surrogate.predict(distinct)
        found = {arch: (m, d) for arch, m, d in zip(distinct, mean, deviation, strict=True)}
        rows = [found[a] if a in found else (float(known[a].value), 0.0) for a in archs]
        both = np.array(rows).reshape(-1, 2)
        return both[:, 0], both[:, 1]

    def compare(self, predicted: Sequence[float], measured: Sequence[float]) -> float | None:
        """Notes how well a batch was predicted.

        Returns:
            Rank correlation of the batch, and of what was compared before where the batch is
            small, see :func:`rank_correlation`.
        """
        self.compared += zip(predicted, measured, strict=True)
        recent = self.compared[-max(len(predicted), _RECENT) :]
        return rank_correlation(*zip(*recent, strict=True))

    def details(self) -> dict[str, Any]:
        """For the result: how well all candidates were predicted before they were scored."""
        if not self.compared:
            return {}
        predicted, measured = zip(*self.compared, strict=True)
        found = rank_correlation(predicted, measured)
        errors = np.abs(np.subtract(predicted, measured))
        return {
            'surrogate': {
                'rank_correlation': None if found is None else round(found, 4),
                'mean_error': round(float(errors.mean()), 6),
                'candidates': len(self.compared),
            }
        }


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation; None of fewer than three pairs, or where all are equal."""
    from scipy.stats import spearmanr

    if len(first) < 3 or len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return float(spearmanr(first, second).statistic)
