"""What a search knows: its archive, and which of the Archs there it has asked for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from mmscale.arch import Arch
from mmscale.errors import UsageError
from mmscale.search.archive import Archive
from mmscale.search.entry import Failure, Score

# So many may fail before it matters whether most do.
_FEW_FAILURES = 8


@dataclass(frozen=True)
class Batch:
    """Archs whose scores a search waits for.

    Attributes:
        archs: The Archs; some may be known.
        needed: Per Arch the score from which on it is of interest: below it may be dropped. None
            where all scores are wanted.
    """

    archs: Sequence[Arch]
    needed: Sequence[Fraction] | None = None

    @property
    def least(self) -> Mapping[Arch, Fraction]:
        """Of every Arch the least score that is of interest; none where all are wanted."""
        least: dict[Arch, Fraction] = {}
        if self.needed is not None:
            for arch, value in zip(self.archs, self.needed, strict=True):
                least[arch] = min(value, least.get(arch, value))
        return least


class Record:
    """The archive of a search, and what of it the search has asked for so far.

    What a search does next depends on this alone, never on what else the archive holds: so a run
    that replays an archive takes the same steps.

    Args:
        archive: What is known already.

    Attributes:
        step: Name of the present step, for progress reports.
        title: What the steps are part of, set before their names.
        requested: Digests of the Archs of the present search that have a score; a search of
            several parts may start it anew for each.
        scores: Of every batch that was answered the Archs with a score, in the order of the
            batches: the same on every rank and in every run.
        dropped: Digests of the Archs that were not worth a score when they were asked for.
        failed: Digests of the Archs that could not be scored.
        best: Best fitness so far, for progress reports.
        most_evaluations: Upper bound of the search's evaluations, for progress reports.
        limit: Distinct Archs that the search may ask for; None for any number. Those of scaling
            stages of weight 0 in the result come on top.
    """

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.step = ''
        self.title = ''
        self.best: Fraction | None = None
        self.most_evaluations = 0
        self.limit: int | None = None
        self.requested: set[str] = set()
        self.scores: dict[Arch, Score] = {}
        self.dropped: set[str] = set()
        self.failed: set[str] = set()

    @property
    def evaluations(self) -> int:
        """Distinct Archs scored so far: the same in a run that replays an archive."""
        return len(self.requested)

    @property
    def left(self) -> float:
        """How many more distinct Archs the search may ask for; inf for any number."""
        return math.inf if self.limit is None else self.limit - self.evaluations

    def is_new(self, arch: Arch) -> bool:
        """Whether the search has no score of an Arch yet, so that it would be an evaluation."""
        return arch.digest not in self.requested

    def begin_part(self) -> None:
        """Counts anew: a part of a search knows nothing of what the last one asked for."""
        self.requested, self.dropped, self.failed = set(), set(), set()
        self.scores = {}

    def unknown(self, archs: Sequence[Arch]) -> list[Arch]:
        """Those of some Archs that the archive does not know, each once."""
        return list(dict.fromkeys(arch for arch in archs if arch not in self.archive))

    def answer(self, batch: Batch) -> list[Score | None]:
        """The scores of a batch, and notes that the search has asked for them.

        Returns:
            In the order of the Archs; None for one that could not be scored or is below what is
            needed.

        Raises:
            ValueError: Most Archs of the search have failed.
        """
        self.note(batch.archs, batch.least)
        needed = batch.needed or [None] * len(batch.archs)
        scores = []
        for arch, value in zip(batch.archs, needed, strict=True):
            score = self.archive.score(arch)
            is_enough = score is not None and (value is None or score.value >= value)
            scores.append(score if is_enough else None)
            if is_enough:
                self.scores[arch] = score
        self._check_failures()
        return scores

    def note(self, archs: Sequence[Arch], least: Mapping[Arch, Fraction]) -> None:
        """Notes which Archs have been asked for, by what the archive says of them."""
        for arch in archs:
            outcome = self.archive.outcome(arch)
            if isinstance(outcome, Failure):
                self.failed.add(arch.digest)
            elif outcome is not None and (arch not in least or outcome.value >= least[arch]):
                self.requested.add(arch.digest)
            else:
                self.dropped.add(arch.digest)

    @property
    def _tried(self) -> int:
        return len(self.requested | self.dropped)

    def _check_failures(self) -> None:
        """Ends a search that gets hardly any score: then it is not the Archs that are at fault."""
        if len(self.failed) > _FEW_FAILURES and len(self.failed) > self._tried:
            raise UsageError(self.explain_failures())

    def explain_failures(self) -> str:
        """How many Archs of the search could not be scored, and why."""
        scored, failed = self._tried, len(self.failed)
        known = self.archive.failures
        failures = [known[digest] for digest in sorted(self.failed)]
        (kind, number), *_ = Counter(failure.kind for failure in failures).most_common(1)
        example = next(failure for failure in failures if failure.kind == kind)
        return (
            f'{failed} of {failed + scored} networks could not be scored, {number} of them for: '
            f'{kind} (as: {example.reason}); when the cause is gone, continue with --resume '
            f'--retry-failed'
        )
