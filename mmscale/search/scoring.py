"""Scoring of Archs: no Arch twice, split over ranks, archived as each one finishes."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

from mmscale.arch import Arch
from mmscale.cost import count
from mmscale.search.archive import Archive, Entry, Score


class EvaluationError(Exception):
    """One Arch cannot be scored, while others can.

    The message is the reason; what stands before its first colon is the kind of it, as in
    ``out of memory: tried to allocate 2 GiB``.
    """


class Evaluator(Protocol):
    """Scores one Arch. Equal Archs must get equal scores, on every rank and in every run."""

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
        fresh: Archs this process has evaluated itself since it started: the rate for an ETA.
        best: Best fitness so far, or None.
    """

    step: str
    evaluations: int
    most_evaluations: int
    fresh: int
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


class Scorer:
    """Scores batches of Archs. All ranks must call :meth:`score` with equal batches.

    Args:
        archive: What is known already; every new score is appended to it at once.
        evaluator: Scores one Arch.
        communicator: The ranks.
        progress: Called after every evaluation and every batch.

    Attributes:
        step: Name of the present step, for `progress`.
        title: What the steps are part of, set before their names.
        requested: Digests of the Archs of the present search that have a score; a search of
            several parts may start it anew for each.
        dropped: Digests of the Archs that were not worth a score when they were asked for.
        best: Best fitness so far, for `progress`.
        most_evaluations: Upper bound of the search's evaluations, for `progress`.

    Raises:
        ValueError: The archive belongs to another rank or to another evaluator.
    """

    def __init__(
        self,
        archive: Archive,
        evaluator: Evaluator,
        communicator: Communicator | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self.archive = archive
        self.evaluator = evaluator
        self.communicator = communicator or SingleProcess()
        self.progress = progress
        self.step = ''
        self.title = ''
        self.best: Fraction | None = None
        self.most_evaluations = 0
        self.fresh = 0
        self.requested: set[str] = set()
        self.dropped: set[str] = set()
        if archive.rank != self.communicator.rank:
            raise ValueError(
                f'archive of rank {archive.rank} in the process of rank {self.communicator.rank}'
            )
        for key, value in json.loads(json.dumps(dict(evaluator.fingerprint))).items():
            if key not in archive.fingerprint or archive.fingerprint[key] != value:
                raise ValueError(
                    f'archive: fingerprint has {key}={archive.fingerprint.get(key)!r}, '
                    f'the evaluator {value!r}'
                )
        self._agree()

    def _agree(self) -> None:
        """Waits until every rank has read the archive, then levels what they have read."""
        # A rank that starts late may already see entries that another appended since.
        digests = self.archive.digests()
        summary = hashlib.sha256(''.join(digests).encode()).hexdigest()
        if any(other != [summary] for other in self.communicator.gather([summary])):
            common = set.intersection(*map(set, self.communicator.gather(digests)))
            lines = [e.to_line() for e in self.archive.entries() if e.arch.digest not in common]
            self._merge(self.communicator.gather(lines))

    def _merge(self, gathered: list[list[str]]) -> None:
        for rank, lines in enumerate(gathered):
            self.archive.merge(lines, rank)

    @property
    def evaluations(self) -> int:
        """Distinct Archs scored so far: the same in a run that replays an archive."""
        return len(self.requested)

    def score(self, archs: Sequence[Arch]) -> list[Score]:
        """Scores Archs, evaluating those that neither the batch nor the archive has already.

        Args:
            archs: The batch; equal on all ranks.

        Returns:
            The scores, in the order of `archs`.
        """
        self._evaluate(archs, {})
        return [self._known(arch) for arch in archs]

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
            The scores, in the order of `archs`, None where it is below what is needed.
        """
        least: dict[Arch, Fraction] = {}
        for arch, value in zip(archs, needed, strict=True):
            least[arch] = min(value, least.get(arch, value))
        self._evaluate(archs, least)
        scores = [self.archive.score(arch) for arch in archs]
        return [
            score if score is not None and score.value >= value else None
            for score, value in zip(scores, needed, strict=True)
        ]

    def _evaluate(self, archs: Sequence[Arch], least: Mapping[Arch, Fraction]) -> None:
        """Brings all Archs into the archive, but for those that miss the least score needed."""
        pending = list(dict.fromkeys(arch for arch in archs if arch not in self.archive))
        self._count([arch for arch in archs if arch in self.archive], least)
        costs = [count(arch) for arch in pending]
        shares = split_by_cost([c.flops for c in costs], self.communicator.world_size)
        lines = []
        for index in shares[self.communicator.rank]:
            arch = pending[index]
            # An evaluator that knows no bound is not asked for one without need.
            bound = (least[arch],) if arch in least else ()
            score = self.evaluator.evaluate(arch, *bound)
            if score is not None:
                lines.append(self.archive.append(Entry(arch, costs[index], score)))
                self._count([arch], least)
            self.fresh += 1
            self._report()
        if pending:
            self._merge(self.communicator.gather(lines))
            self._count(pending, least)
        self._report()

    def _count(self, archs: Sequence[Arch], least: Mapping[Arch, Fraction]) -> None:
        for arch in archs:
            score = self.archive.score(arch)
            kept = score is not None and (arch not in least or score.value >= least[arch])
            (self.requested if kept else self.dropped).add(arch.digest)

    def _known(self, arch: Arch) -> Score:
        score = self.archive.score(arch)
        if score is None:
            raise RuntimeError(f'arch {arch.digest[:10]} was not scored by any rank')
        return score

    def _report(self) -> None:
        if self.progress is not None:
            step = self.title + self.step
            self.progress(
                Progress(step, self.evaluations, self.most_evaluations, self.fresh, self.best)
            )
