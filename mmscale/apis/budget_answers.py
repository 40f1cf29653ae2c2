"""Answers to budgets that no search was run for: data that prints and saves itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmscale.apis.reports.run_files import read_settings
from mmscale.arch import Arch
from mmscale.arch.origin import origin_of
from mmscale.cost import Cost
from mmscale.files import write_json
from mmscale.search import Score
from mmscale.search.best_predicted import Predicted
from mmscale.search.limits import shown
from mmscale.tables import Printed, make_table
from mmscale.untrusted import check_work_dir

if TYPE_CHECKING:
    from rich.table import Table

# Fewer left-out scores have no ranking.
_FEWEST_RANKED = 8


@dataclass(frozen=True)
class Ranking:
    """How well predicted scores of networks agree with those that were measured.

    Attributes:
        networks: How many.
        tau: Kendall's rank correlation; None of too few, or where all scores are equal.
        error: Mean absolute difference; None of none.
    """

    networks: int
    tau: float | None
    error: float | None

    @classmethod
    def of(cls, predicted: NDArray, measured: NDArray) -> Ranking:
        """The ranking of networks, shapes (n,)."""
        number = len(measured)
        if not number:
            return cls(0, None, None)
        from scipy.stats import kendalltau

        tau = None
        if number >= _FEWEST_RANKED and np.ptp(measured) > 0 and np.ptp(predicted) > 0:
            tau = float(kendalltau(predicted, measured).statistic)
        return cls(number, tau, float(np.abs(predicted - measured).mean()))

    def __str__(self) -> str:
        if not self.networks:
            return 'there are none'
        tau = 'no tau of so few' if self.tau is None else f'tau {self.tau:.2f}'
        error = '' if self.error is None else f', mean error {100 * self.error:.1f} points'
        return f'{tau} over {self.networks} networks{error}'


@dataclass(frozen=True)
class Answer:
    """A network that answers a budget.

    Attributes:
        arch: The network.
        cost: Its cost.
        latency: Its predicted latency in milliseconds, None without a latency model.
        predicted: How it was found and its predicted score; None of one that is shown because
            it was archived.
        score: Its measured score, None without.
    """

    arch: Arch
    cost: Cost
    latency: float | None
    predicted: Predicted | None
    score: Score | None

    def to_json(self) -> dict[str, Any]:
        """Returns the network as plain JSON data."""
        data: dict[str, Any] = {'cost': asdict(self.cost)}
        if self.latency is not None:
            data['cost']['latency'] = self.latency
        if self.predicted is not None:
            found = self.predicted
            data |= {
                'genes': list(found.base.genes),
                'scaling_stage': found.scaling_stage,
                'scaling': found.scaling.to_json(),
                'predicted': {'mean': found.mean, 'deviation': found.deviation},
            }
        data['score'] = None if self.score is None else asdict(self.score)
        return {**data, 'arch': self.arch.to_json()}


@dataclass(frozen=True)
class BudgetAnswer:
    """What the archive says of one budget.

    Attributes:
        budgets: By metric.
        networks: The best predicted networks, the best first.
        archived: Archived networks within budgets and caps, the best first; if there is none,
            those that are nearest.
        is_met: Whether the archived ones are within them.
        ranking: How well the surrogate ranks left-out scores of networks of like cost.
    """

    budgets: dict[str, float]
    networks: tuple[Answer, ...]
    archived: tuple[Answer, ...]
    is_met: bool
    ranking: Ranking

    @property
    def title(self) -> str:
        """The budgets in a line."""
        texts = [shown(value, metric) for metric, value in self.budgets.items()]
        return ' and '.join(texts) or 'caps alone'

    def to_json(self) -> dict[str, Any]:
        """Returns the answer as plain JSON data."""
        return {
            'budgets': self.budgets,
            'networks': [network.to_json() for network in self.networks],
            'archived': [network.to_json() for network in self.archived],
            'archived_within': self.is_met,
            'ranking_of_like_cost': asdict(self.ranking),
        }


@dataclass(frozen=True, repr=False)
class BudgetAnswers(Printed):
    """Answers to budgets that no search was run for; prints their tables.

    Attributes:
        work_dir: Of the search.
        scores: Scores that the surrogate was fitted to.
        archived: Scores in the archive.
        caps: What no network exceeds, by metric.
        tolerance: Largest relative deviation from a budget.
        ranking: How well the surrogate ranks scores that are left out of its fit.
        answers: One per budget.
        verified: Predicted against measured scores of what was verified; None if nothing was.
    """

    work_dir: Path
    scores: int
    archived: int
    caps: dict[str, float]
    tolerance: float
    ranking: Ranking
    answers: tuple[BudgetAnswer, ...]
    verified: Ranking | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the answers as plain JSON data."""
        return {
            'schema': 1,
            'kind': 'any budget',
            'scores': self.scores,
            'archived': self.archived,
            'caps': self.caps,
            'tolerance': self.tolerance,
            'ranking': asdict(self.ranking),
            'answers': [answer.to_json() for answer in self.answers],
            'verified': None if self.verified is None else asdict(self.verified),
        }

    def renderables(self) -> list[Table | str]:
        """A table per budget, and how far the predictions can be trusted."""
        found: list[Table | str] = []
        for answer in self.answers:
            has_latency = any(one.latency is not None for one in answer.networks)
            columns = ['', 'stage', 'px', 'flops', 'params', 'acts']
            columns += ['ms'] * has_latency + ['predicted', 'scored']
            rows: list[tuple | None] = [
                (f'best {i}', *_cells(network, has_latency))
                for i, network in enumerate(answer.networks)
            ]
            rows.append(None)
            name = 'archived' if answer.is_met else 'nearest'
            rows += [
                (f'{name} {i}', *_cells(one, has_latency)) for i, one in enumerate(answer.archived)
            ]
            caps = ''.join(f', at most {shown(v, m)}' for m, v in self.caps.items())
            within = f' within {self.tolerance:g}' if answer.budgets else ''
            found.append(make_table(f'{answer.title}{within}{caps}', columns, rows, dense=True))
            found.append(f'left-out scores of networks of like cost: {answer.ranking}')
        found.append(
            f'left-out scores of all networks: {self.ranking}; the surrogate is fitted to '
            f'{self.scores:,} of {self.archived:,} scores'
        )
        if self.verified is not None:
            found.append(f'predicted against scored: {self.verified}')
        return found

    def save(self, folder: str | Path) -> None:
        """Writes ``answers.json`` and the best predicted networks as Arch files.

        Args:
            folder: Gets ``answers.json`` and ``archs/budget_<i>_<j>.json``, j by falling
                predicted score.
        """
        folder = Path(folder)
        (folder / 'archs').mkdir(parents=True, exist_ok=True)
        check_work_dir(folder)
        origin = origin_of(read_settings(self.work_dir).config)
        for i, answer in enumerate(self.answers):
            for j, network in enumerate(answer.networks):
                network.arch.save(folder / 'archs' / f'budget_{i}_{j}.json', origin)
        write_json(folder / 'answers.json', self.to_json())


def _cells(network: Answer, has_latency: bool) -> tuple[object, ...]:
    """A row of a table; scores in percent."""
    found, cost = network.predicted, network.cost
    mean = found and f'{100 * found.mean:.1f} ± {100 * found.deviation:.1f}'
    return (
        found and found.scaling_stage,
        network.arch.resolution,
        *(f'{value:,}' for value in (cost.flops, cost.params, cost.acts)),
        *([f'{network.latency:.3g}'] if has_latency else []),
        mean,
        None if network.score is None else f'{100 * float(network.score.value):.1f}',
    )
