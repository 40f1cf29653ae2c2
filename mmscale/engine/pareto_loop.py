"""Multi-objective search as MMEngine's ``test_cfg``."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

from mmscale.arch import Arch
from mmscale.cost import CostTable, LatencyModel
from mmscale.engine.scoring_loop import ScoringLoop
from mmscale.errors import UsageError
from mmscale.registry import LOOPS
from mmscale.search import OnStep, ParetoResult, ParetoSearch, Scorer
from mmscale.search.forecast import Forecast, forecast


def _load(path: object) -> LatencyModel:
    """The latency model that a config names."""
    if not isinstance(path, (str, Path)):
        raise UsageError(f'latency_model={path!r:.60} must be the path of a JSON file')
    try:
        return LatencyModel.load(path)
    except (OSError, ValueError) as error:
        raise UsageError(f'latency_model: {error}') from error


@LOOPS.register_module()
class ParetoLoop(ScoringLoop):
    """Search of the front of score against one cost, over all networks of the space.

    Its own settings: ``metric``, ``cost_range``, ``population``, ``generations`` and
    ``mutations``, see :class:`mmscale.search.ParetoSearch`; and ``latency_model``, the JSON file
    of a :class:`mmscale.cost.LatencyModel`.
    """

    @staticmethod
    def make_search(
        table: CostTable,
        seed: int,
        on_step: OnStep | None = None,
        *,
        latency_model: str | None = None,
        **settings: Any,
    ) -> ParetoSearch:
        """Builds the search of a config; nothing is evaluated, no model or data is needed.

        Args:
            table: Costs of the space.
            seed: Seed of the search.
            on_step: Called with every generation.
            latency_model: JSON file of a latency model.
            **settings: Further settings of the search.

        Raises:
            TypeError: A setting is unknown.
            ValueError: A setting is not allowed, or the latency model cannot be read.
        """
        model = None if latency_model is None else _load(latency_model)
        return ParetoSearch(table, latency_model=model, seed=seed, on_step=on_step, **settings)

    def build_search(self, **settings: Any) -> None:
        """Builds the search."""
        self._search = self.make_search(self.table, self.seed, self.on_step, **settings)

    def search(self, scorer: Scorer) -> ParetoResult:
        """Runs the search."""
        self._search.scorer = scorer
        return self._search.run()

    def forecast(self) -> Forecast:
        """What the search is expected to evaluate."""
        return forecast(self._search, None, self.seed, self.search)

    @staticmethod
    def networks(result: ParetoResult) -> dict[str, Arch]:
        """The networks of the front, by rising cost."""
        return {f'front_{i}': member.arch for i, member in enumerate(result.front)}

    @staticmethod
    def best(result: ParetoResult) -> Fraction:
        """The best score."""
        return result.front[-1].score.value
