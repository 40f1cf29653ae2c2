"""Ask and tell: a search that says which Archs it wants to know, and is told their scores."""

from __future__ import annotations

from collections.abc import Generator
from typing import Generic, TypeVar

from mmscale.arch import Arch
from mmscale.arch.checks import integer
from mmscale.cost import count
from mmscale.errors import UsageError
from mmscale.search.entry import Entry, Failure, Score
from mmscale.search.record import Batch, Record

ResultType = TypeVar('ResultType')
Steps = Generator[Batch, list[Score | None], ResultType]
"""A search, or a part of it: yields batches of Archs, is sent their scores, returns its result."""

# Of a score that is told as a number from 0 to 1.
_TOTAL = 1_000_000


class Searcher(Generic[ResultType]):
    """Runs the steps of a search as far as the scores go that are known.

    All searches of mmscale run under it; who scores the Archs is the caller's: the evaluator of a
    super-supernet, a simulator, a board or a training. Everything is determined by the search, its
    seed and the scores, so that a searcher of a reopened archive goes on where the last one was.

    Args:
        steps: The search, ``search.steps(record)``.
        record: Its archive.

    Attributes:
        batch: What the search waits for.
        finished: Whether it waits for nothing more.

    Raises:
        ValueError: The budgets leave nothing to search.

    Example:
        >>> import mmscale
        >>> searcher = mmscale.searcher(  # doctest: +SKIP
        ...     'configs/nas/search-evolution_attentive_digits.py', 'work_dirs/board', 'board v1'
        ... )
        >>> while not searcher.finished:  # doctest: +SKIP
        ...     for arch in searcher.ask(8):
        ...         searcher.tell(arch, accuracy_on_the_board(arch))
    """

    def __init__(self, steps: Steps[ResultType], record: Record) -> None:
        self.record = record
        self._steps = steps
        self.batch = Batch(())
        self._result: ResultType | None = None
        self._asked: set[Arch] = set()
        self.finished = False
        self._next(None)

    def _next(self, scores: list[Score | None] | None) -> None:
        """Goes on until there is an Arch to score."""
        while True:
            try:
                self.batch = self._steps.send(scores)
            except StopIteration as end:
                self.batch, self._result, self.finished = Batch(()), end.value, True
                return
            self._asked = set()
            if self.pending:
                return
            scores = self.record.answer(self.batch)

    @property
    def pending(self) -> list[Arch]:
        """The Archs that the search waits for, asked for already or not."""
        return self.record.unknown(self.batch.archs)

    @property
    def result(self) -> ResultType:
        """What the search has found.

        Raises:
            UsageError: It has not finished.
        """
        if not self.finished:
            raise UsageError(
                f'the search has no result yet: it waits for {len(self.pending)} scores'
            )
        return self._result

    def ask(self, n: int | None = None) -> list[Arch]:
        """Archs to score next.

        Args:
            n: How many at most; None for all that can be scored now.

        Returns:
            Archs that were not asked for before. Empty once the search has finished, and while all
            that it waits for were asked for: then tell their scores first.
        """
        if n is not None:
            integer('n', n)
        archs = [arch for arch in self.pending if arch not in self._asked][:n]
        self._asked.update(archs)
        return archs

    def tell(self, arch: Arch, score: Score | Failure | float) -> None:
        """Tells the score of an Arch; it is in the archive when this returns.

        Args:
            arch: One of those asked for.
            score: The right answers of all, or a number from 0 to 1, the higher the better, which
                is kept in millionths; or why the Arch cannot be scored: the search goes on without
                it.

        Raises:
            UsageError: The search does not wait for this Arch, or the score is of another kind.
        """
        if not isinstance(arch, Arch):
            raise UsageError(f'arch={arch!r:.60} must be an Arch, one of those asked for')
        if arch not in self.pending:
            raise UsageError(f'arch {arch.digest[:10]}: the search does not wait for its score')
        if not isinstance(score, (Score, Failure)):
            score = _score_of(score)
        self.record.archive.append(Entry(arch, count(arch), score))
        if not self.pending:
            self.go_on()

    def go_on(self) -> None:
        """Takes the next steps. What is not known by now is dropped, as not worth its score."""
        if not self.finished:
            self._next(self.record.answer(self.batch))


def _score_of(value: object) -> Score:
    if isinstance(value, bool) or not hasattr(value, '__float__') or not 0 <= float(value) <= 1:
        raise UsageError(f'score={value!r:.60} must be a Score, a Failure or a number from 0 to 1')
    return Score(round(float(value) * _TOTAL), _TOTAL)
