"""Scoring of Archs: no Arch twice, split over ranks, archived as each one finishes."""

from __future__ import annotations

import hashlib
import heapq
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

from mmscale.arch import Arch
from mmscale.cost import Cost, count
from mmscale.errors import MMScaleError, UsageError, one_line
from mmscale.search.archive import Archive, differing
from mmscale.search.entry import MOST_REASON_CHARACTERS, Entry, Failure, Outcome, Score
from mmscale.search.record import Batch, Record
from mmscale.search.searcher import ResultType, Searcher, Steps


class EvaluationError(MMScaleError):
    """One Arch cannot be scored, while others can.

    The message is the reason; what stands before its first colon is the kind of it, as in
    ``out of memory: tried to allocate 2 GiB``.
    """


class Evaluator(Protocol):
    """Scores one Arch. Equal Archs must get equal scores, on every rank and in every run.

    It may have more, which is used where it is there:

    * ``prepare_together(resolution, communicator)``: called on all ranks at the same time, before
      Archs of a resolution are scored;
    * ``candidates_per_pass``, and ``evaluate_together(archs, needed)``: scores so many Archs of
      one resolution at once, each as ``evaluate`` would; gives a list of what that returns or
      raises as an EvaluationError.
    """

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """What the scores depend on, as plain JSON data."""

    def evaluate(self, arch: Arch, needed: Fraction | None = None) -> Score | None:
        """The score of an Arch; or None, if it is certain to be below `needed`.

        Args:
            arch: The Arch.
            needed: The score that is of interest at least; None for any. It may be ignored, and
                is given only where a search may drop candidates.

        Raises:
            EvaluationError: This Arch cannot be scored.
        """


class Communicator(Protocol):
    """The ranks that search together."""

    @property
    def rank(self) -> int:
        """Rank of this process, from 0."""

    @property
    def world_size(self) -> int:
        """Number of processes."""

    def gather(self, items: list[str]) -> list[list[str]]:
        """Waits for all ranks; gives each of them every rank's items, in the order of ranks."""


class SingleProcess:
    """A communicator of one process."""

    rank = 0
    world_size = 1

    def gather(self, items: list[str]) -> list[list[str]]:
        """Returns the only rank's items."""
        return [items]


@dataclass(frozen=True)
class Progress:
    """How far a search is, for a log line.

    Attributes:
        step: What is going on, for example ``base evolution, round 2 of 8, generation 3 of 40``.
        evaluations: Distinct Archs of this search that have a score, replayed ones included;
            of the present batch those of this rank only.
        most_evaluations: Upper bound of it for the whole search, 0 if unknown.
        expected_evaluations: About how many the whole search comes to, 0 if unknown.
        fresh: Archs this process has evaluated itself since it started: the rate for an ETA.
        failed: Distinct Archs of this search that could not be scored.
        best: Best fitness so far, or None.
    """

    step: str
    evaluations: int
    most_evaluations: int
    expected_evaluations: int
    fresh: int
    failed: int
    best: Fraction | None


def split_by_cost(costs: Sequence[int], ranks: int) -> list[list[int]]:
    """Splits work over ranks: longest first, each onto the rank with the least so far.

    Args:
        costs: Predicted cost of every item.
        ranks: Number of ranks.

    Returns:
        Per rank the indices of its items, longest first; equal input gives equal output.
    """
    loads = [(0, rank) for rank in range(ranks)]
    shares: list[list[int]] = [[] for _ in range(ranks)]
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        load, rank = heapq.heappop(loads)
        shares[rank].append(index)
        heapq.heappush(loads, (load + costs[index], rank))
    return shares


class Scorer(Record):
    """Scores batches of Archs. All ranks must call :meth:`score` with equal batches.

    An Arch that cannot be scored is archived as failed, and not tried again; the search goes on
    without it, unless most Archs of the search have failed.

    Args:
        archive: What is known already; every new score is appended to it at once.
        evaluator: Scores one Arch.
        communicator: The ranks.
        progress: Called after every evaluation and every batch.
        on_evaluated: Called with every Arch that this process has evaluated itself, its cost and
            the seconds that it took.
        expected_evaluations: About how many evaluations the search comes to, for `progress`.

    Raises:
        ValueError: The archive belongs to another rank or to another evaluator.
    """

    def __init__(
        self,
        archive: Archive,
        evaluator: Evaluator,
        communicator: Communicator | None = None,
        progress: Callable[[Progress], None] | None = None,
        on_evaluated: Callable[[Arch, Cost, float], None] | None = None,
        expected_evaluations: int = 0,
    ) -> None:
        super().__init__(archive)
        self.evaluator = evaluator
        self.communicator = communicator or SingleProcess()
        self.progress = progress
        self.on_evaluated = on_evaluated
        self.expected_evaluations = expected_evaluations
        self.fresh = 0
        if archive.rank != self.communicator.rank:
            raise UsageError(
                f'archive of rank {archive.rank} in the process of rank {self.communicator.rank}'
            )
        for key, value in json.loads(json.dumps(dict(evaluator.fingerprint))).items():
            if key not in archive.fingerprint or archive.fingerprint[key] != value:
                raise UsageError(
                    f'archive: fingerprint has {key}={archive.fingerprint.get(key)!r}, '
                    f'the evaluator {value!r}'
                )
        self._agree()

    def _agree(self) -> None:
        """Waits until every rank has read the archive, then levels what they have read."""
        # A rank that starts late may already see entries that another appended since.
        failures = self.archive.failures
        digests = self.archive.digests()
        summary = hashlib.sha256()
        for digest in digests:
            summary.update(f'{digest} {digest in failures}'.encode())
        fingerprint = json.dumps(self.archive.fingerprint, sort_keys=True)
        mine = [fingerprint, summary.hexdigest()]
        gathered = self.communicator.gather(mine)
        for rank, (other, _) in enumerate(gathered):
            if other != fingerprint:
                where = f'of rank {rank}'
                found = differing(json.loads(other), self.archive.fingerprint, where)
                raise UsageError(
                    f'the scores of rank {rank} belong to another setting than those of rank '
                    f'{self.communicator.rank} ({found})'
                )
        if any(other != mine for other in gathered):
            known = [f'{digest} {digest in failures}' for digest in digests]
            common = set.intersection(*map(set, self.communicator.gather(known)))
            digests = {item.split()[0] for item in set(known) - common}
            self._merge(self.communicator.gather(list(self.archive.lines(digests))))

    def _merge(self, gathered: list[list[str]]) -> None:
        for rank, lines in enumerate(gathered):
            self.archive.merge(lines, rank)

    def score(self, archs: Sequence[Arch]) -> list[Score | None]:
        """Scores Archs, evaluating those that neither the batch nor the archive has already.

        Args:
            archs: The batch; equal on all ranks.

        Returns:
            The scores, in the order of `archs`, None for one that cannot be scored.

        Raises:
            ValueError: Most Archs of the search have failed.
        """
        return self._answer(Batch(archs))

    def score_needed(
        self, archs: Sequence[Arch], needed: Sequence[Fraction]
    ) -> list[Score | None]:
        """Scores Archs that are of interest from a certain score on, and drops the others.

        What is dropped depends on scores alone, not on what the archive knows or how far an
        evaluation went before it was certain.

        Args:
            archs: The batch; equal on all ranks.
            needed: Per Arch the score that it needs.

        Returns:
            The scores, in the order of `archs`, None where it is below what is needed, and for
            one that cannot be scored.

        Raises:
            ValueError: Most Archs of the search have failed.
        """
        return self._answer(Batch(archs, needed))

    def _answer(self, batch: Batch) -> list[Score | None]:
        self._evaluate(self.unknown(batch.archs), batch)
        return self.answer(batch)

    def drive(self, steps: Steps[ResultType]) -> ResultType:
        """Runs the steps of a search to their end; all ranks must call it with equal steps.

        Raises:
            ValueError: Most Archs of the search have failed.
        """
        searcher = Searcher(steps, self)
        while not searcher.finished:
            self._evaluate(searcher.ask(), searcher.batch)
            searcher.go_on()
        self._report()
        return searcher.result

    def _evaluate(self, pending: Sequence[Arch], batch: Batch) -> None:
        """Brings Archs into the archive, but for those that miss the least score needed."""
        least = batch.least
        # Of a batch that is half known, progress reports count what is known.
        self.note([arch for arch in batch.archs if arch in self.archive], least)
        costs = [count(arch) for arch in pending]
        shares = split_by_cost([c.flops for c in costs], self.communicator.world_size)
        prepare = getattr(self.evaluator, 'prepare_together', None)
        if prepare is not None:
            for resolution in dict.fromkeys(arch.resolution for arch in pending):
                prepare(resolution, self.communicator)
        lines = []
        for group in self._groups(pending, shares[self.communicator.rank]):
            start = time.perf_counter()
            outcomes = self._outcomes([pending[index] for index in group], least)
            seconds = (time.perf_counter() - start) / len(group)
            for index, outcome in zip(group, outcomes, strict=True):
                arch = pending[index]
                start = time.perf_counter()
                if outcome is not None:
                    lines.append(self.archive.append(Entry(arch, costs[index], outcome)))
                    self.note([arch], least)
                if self.on_evaluated is not None:
                    spent = seconds + time.perf_counter() - start
                    self.on_evaluated(arch, costs[index], spent)
                self.fresh += 1
                self._report()
        if pending:
            self._merge(self.communicator.gather(lines))
        self._report()

    def _groups(self, archs: Sequence[Arch], share: Sequence[int]) -> list[list[int]]:
        """Splits a rank's share into what is evaluated together: Archs of one resolution each."""
        most = getattr(self.evaluator, 'candidates_per_pass', 1)
        groups: list[list[int]] = []
        open_groups: dict[int, list[int]] = {}
        for index in share:
            group = open_groups.get(archs[index].resolution)
            if group is None or len(group) == most:
                group = open_groups[archs[index].resolution] = []
                groups.append(group)
            group.append(index)
        return groups

    def _outcomes(
        self, archs: Sequence[Arch], least: Mapping[Arch, Fraction]
    ) -> list[Outcome | None]:
        """What the evaluator says of Archs of one resolution."""
        if len(archs) > 1:
            outcomes = self.evaluator.evaluate_together(archs, [least.get(a) for a in archs])
        else:
            # An evaluator that knows no bound is not asked for one without need.
            bound = [least[arch] for arch in archs if arch in least]
            try:
                outcomes = [self.evaluator.evaluate(archs[0], *bound)]
            except EvaluationError as error:
                outcomes = [error]
        return [
            Failure(f'{one_line(outcome):.{MOST_REASON_CHARACTERS}}')
            if isinstance(outcome, EvaluationError)
            else outcome
            for outcome in outcomes
        ]

    def _report(self) -> None:
        if self.progress is not None:
            self.progress(
                Progress(
                    step=self.title + self.step,
                    evaluations=self.evaluations,
                    most_evaluations=self.most_evaluations,
                    expected_evaluations=self.expected_evaluations,
                    fresh=self.fresh,
                    failed=len(self.failed),
                    best=self.best,
                )
            )
