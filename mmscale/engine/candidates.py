"""Candidates that share a pass over the images: what each has got right, and how each may fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import Protocol

import torch
from mmengine.model import BaseModel

from mmscale.arch import Arch
from mmscale.engine.calibration import Recalibration
from mmscale.engine.images import Targets
from mmscale.search import EvaluationError, Score

# How torch says that memory is out: CUDA, and the CPU's allocator.
_OUT_OF_MEMORY = ('out of memory', "can't allocate memory", 'not enough memory')


class OutOfMemoryError(EvaluationError):
    """Memory was out while one network was evaluated, maybe beside others."""


@contextmanager
def out_of_memory_is_of_the_candidate() -> Iterator[None]:
    """Turns running out of memory into a failure of the one network that is evaluated.

    Raises:
        OutOfMemoryError: The device or the machine ran out of memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = ' '.join(str(error).split())
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and not any(
            words in text for words in _OUT_OF_MEMORY
        ):
            raise
        raise OutOfMemoryError(f'out of memory: {text:.200}') from error


class Tally(Protocol):
    """What one candidate has got right so far."""

    def count(self, nets: Sequence[BaseModel], inputs: torch.Tensor, targets: Targets) -> None:
        """Counts a batch of scoring images (N, channels, H, W)."""

    def is_lost(self, seen: int) -> bool:
        """Whether the score is certain to be too low, after so many images."""

    def score(self) -> Score:
        """The score, after all images."""


class RightAnswers:
    """Counts on the device, which is waited for at the end, and where a score has to be reached.

    Args:
        total: Number of images.
        needed: The score that is of interest at least; None for any.
    """

    def __init__(self, total: int, needed: Fraction | None) -> None:
        self._total = total
        self._least = 0 if needed is None else needed * total
        self._correct: torch.Tensor | int = 0
        self._finite: torch.Tensor | bool = True

    def count(self, nets: Sequence[BaseModel], inputs: torch.Tensor, targets: Targets) -> None:
        """Counts the right answers to a batch; of several networks the mean logits are theirs."""
        logits = torch.stack([net(inputs).float() for net in nets]).mean(dim=0)
        self._finite = logits.isfinite().all() & self._finite
        self._correct = (logits.argmax(dim=1) == targets).sum() + self._correct

    def _read(self) -> int:
        correct, finite = torch.stack([self._correct, self._finite.long()]).tolist()
        if not finite:
            raise EvaluationError('logits that are not finite')
        return correct

    def is_lost(self, seen: int) -> bool:
        """Whether too few images are left to reach what is needed."""
        if not seen or self._least <= 0:
            return self._total < self._least
        return self._read() + self._total - seen < self._least

    def score(self) -> Score:
        """Right answers of all images."""
        return Score(self._read(), self._total)


class Candidate:
    """One of the networks that share a pass over the images.

    Attributes:
        arch: What is evaluated.
        tally: What it got right.
        nets: Its networks, one a side; none once it is decided.
        statistics: What measures those of the networks' BN layers; none once they are measured.
        outcome: Score, error, or None for a score that is too low; once it is decided.
        is_decided: Whether the outcome is known.
    """

    def __init__(self, arch: Arch, tally: Tally) -> None:
        self.arch = arch
        self.tally = tally
        self.nets: list[BaseModel] = []
        self.statistics: list[Recalibration] = []
        self.outcome: Score | EvaluationError | None = None
        self.is_decided = False

    def decide(self, outcome: Score | EvaluationError | None) -> None:
        """Sets the outcome, and lets go of the networks."""
        self.outcome, self.is_decided = outcome, True
        self.nets, self.statistics = [], []


def are_decided(candidates: Sequence[Candidate]) -> bool:
    """Whether nothing is left to do."""
    return all(candidate.is_decided for candidate in candidates)


def each(candidates: Sequence[Candidate], action: Callable[..., None], *arguments: object) -> None:
    """Does something with every candidate that is not decided; what fails fails it alone."""
    for candidate in candidates:
        if not candidate.is_decided:
            try:
                with out_of_memory_is_of_the_candidate():
                    action(candidate, *arguments)
            except EvaluationError as error:
                # Without the frames, which hold on to the network.
                candidate.decide(error.with_traceback(None))
