"""What a search will evaluate: it is run beforehand with scores by formula, which cost nothing."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from mmscale.arch import Arch
from mmscale.cost import Cost, count
from mmscale.search.analytic import AnalyticEvaluator
from mmscale.search.archive import Archive
from mmscale.search.entry import Score
from mmscale.search.given_family import GivenFamily
from mmscale.search.halves import EvolutionSearch, ScalingSearch
from mmscale.search.result import Search
from mmscale.search.scoring import Evaluator, Scorer, SingleProcess

_TOTAL = 1_000_000
# Evaluations of a search whose surrogate takes part in its forecast: some seconds.
_MOST_PREDICTED = 600


@dataclass(frozen=True)
class Expected:
    """An Arch that is expected to be evaluated, or one of its like."""

    arch: Arch
    cost: Cost


@dataclass
class Forecast:
    """What a search is expected to evaluate.

    The Archs are not those that it will meet, as the scores are not, but so many of such costs.

    Attributes:
        batches: What is evaluated together, batch after batch.
    """

    batches: list[list[Expected]] = field(default_factory=lambda: [[]])

    @property
    def candidates(self) -> list[Expected]:
        """All candidates, in the order of evaluation."""
        return [candidate for batch in self.batches for candidate in batch]


class _Batches(SingleProcess):
    """Begins a new batch whenever the ranks would exchange their scores."""

    def __init__(self, forecast: Forecast) -> None:
        self._batches = forecast.batches

    def gather(self, items: list[str]) -> list[list[str]]:
        if self._batches[-1]:
            self._batches.append([])
        return super().gather(items)


class _LargerIsBetter:
    """Scores an Arch by its size: all costs are worth a network, as for a front."""

    fingerprint: Mapping[str, Any] = {'evaluator': {'name': 'larger is better'}}

    def evaluate(self, arch: Arch, needed: Fraction | None = None) -> Score:
        return Score(min(int(math.log2(count(arch).flops) * 15_000), _TOTAL), _TOTAL)


def analytic_evaluator(search: Search, seed: int) -> AnalyticEvaluator:
    """Hides a family that a search can find: what the search is given is a part of it.

    Args:
        search: A search for a family.
        seed: Draws what the search is not given.

    Raises:
        ValueError: No family meets the budgets.
    """
    given: dict[str, Any] = {}
    if isinstance(search, ScalingSearch):
        given['base'] = search.base
    elif isinstance(search, EvolutionSearch):
        given['strategy'] = search.strategy
    return AnalyticEvaluator(search.family.feasibility, seed, **given)


def _unaided(search: Search) -> Search:
    """The same search without a surrogate, where that would cost much time.

    Of a long search the surrogate changes little of what its networks cost; of a short one it
    does, as a part of the evaluations goes to the smallest networks.
    """
    evaluations = getattr(search, 'evaluations', None) or math.inf
    if not getattr(search, 'surrogate', False) or evaluations <= _MOST_PREDICTED:
        return search
    found = copy(search)
    found.surrogate = False
    return found


def forecast(search: Search, seed: int) -> Forecast:
    """Runs a search with scores by formula, in a temporary folder.

    Args:
        search: The search.
        seed: Its seed.

    Raises:
        ValueError: No network meets the budgets.
    """
    evaluator: Evaluator = _LargerIsBetter()
    if search.family is not None and not isinstance(search, GivenFamily):
        evaluator = analytic_evaluator(search, seed)
    found = Forecast()

    def note(arch: Arch, cost: Cost, _: float) -> None:
        found.batches[-1].append(Expected(arch, cost))

    with (
        tempfile.TemporaryDirectory() as directory,
        Archive(directory, evaluator.fingerprint, durable=False) as archive,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter('ignore')  # The search itself will say it.
        _unaided(search).run(Scorer(archive, evaluator, _Batches(found), on_evaluated=note))
    if not found.batches[-1]:
        found.batches.pop()
    return found
