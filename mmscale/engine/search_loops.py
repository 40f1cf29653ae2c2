"""Search loops: MMEngine's ``test_cfg`` of a search for a family of networks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from mmscale.arch import Arch, Genotype, Scaling, SearchSpace, get_arch
from mmscale.engine.scoring_loop import ScoringLoop
from mmscale.errors import UsageError
from mmscale.registry import LOOPS
from mmscale.search import (
    MCEA,
    EvolutionSearch,
    FamilyFitness,
    Feasibility,
    GivenFamily,
    OnStep,
    RandomSearch,
    ScalingSearch,
    Scorer,
    Search,
    SearchResult,
    SeparateSearch,
)
from mmscale.search.forecast import Forecast, forecast


class SearchLoop(ScoringLoop):
    """What the searches for a family of networks share: budgets and weights.

    Args:
        *args: As for :class:`ScoringLoop`.
        budget: Budget of the base model, in units of `metric`.
        metric: ``flops``, ``params`` or ``acts``.
        tolerance: Largest relative deviation from any budget.
        weights: Weight of every scaling stage in the fitness.
        **kwargs: As for :class:`ScoringLoop`; settings of the search itself: see
            :meth:`make_search`.

    Raises:
        TypeError: The model is of another kind, or a setting is unknown.
        ValueError: A setting is not allowed or no network meets the budgets.
    """

    def build_search(
        self,
        budget: float,
        metric: str = 'flops',
        tolerance: float = 0.05,
        weights: Sequence[float] | None = None,
        **settings: Any,
    ) -> None:
        """Builds the budgets and, on them, the search."""
        self.family = FamilyFitness(Feasibility(self.table, budget, metric, tolerance), weights)
        self._search = self.make_search(self.family, self.seed, self.on_step, **settings)

    def search(self, scorer: Scorer) -> SearchResult:
        """Runs the search."""
        self.family.scorer = scorer
        return self._search.run()

    def forecast(self) -> Forecast:
        """What the search is expected to evaluate."""
        return forecast(self._search, self.family, self.seed, self.search)

    @staticmethod
    def networks(result: SearchResult) -> dict[str, Arch]:
        """The networks of the family."""
        return {f'scaling_stage_{m.scaling_stage}': m.arch for m in result.family}

    @staticmethod
    def best(result: SearchResult) -> Fraction:
        """Fitness of the family."""
        return result.fitness

    @staticmethod
    @abstractmethod
    def make_search(
        family: FamilyFitness, seed: int, on_step: OnStep | None = None, **settings: Any
    ) -> Search:
        """Builds the search of a config; nothing is evaluated, no model or data is needed.

        Args:
            family: Holds the budgets and the weights; its scorer may be set later.
            seed: Seed of the search.
            on_step: Called with every event of the search.
            **settings: Those keys of the config's test_cfg that are the loop's own.

        Raises:
            TypeError: A setting is unknown or missing.
            ValueError: A setting is not allowed.
        """


@LOOPS.register_module()
class MCEALoop(SearchLoop):
    """Joint search of base model and scaling strategy.

    Its own settings: ``population``, ``generations``, ``rounds``, ``num_base_models``,
    ``mutations`` and ``halving``, see :class:`mmscale.search.MCEA`.
    """

    @staticmethod
    def make_search(
        family: FamilyFitness, seed: int, on_step: OnStep | None = None, **settings: Any
    ) -> MCEA:
        """Builds the Markov-chain evolution."""
        return MCEA(family, seed=seed, on_step=on_step, **settings)


def _scalings(strategy: Sequence[dict[str, float]]) -> tuple[Scaling, ...]:
    """The strategy that a config spells out."""
    if not isinstance(strategy, (list, tuple)):
        raise UsageError(
            f'strategy={strategy!r:.60} must be a list of dict(depth=, width=, resolution=), one '
            'per scaling stage'
        )
    return tuple(Scaling.from_json(f'strategy[{j}]', each) for j, each in enumerate(strategy))


@LOOPS.register_module()
class EvolutionLoop(SearchLoop):
    """Search of the base model for a given strategy, or of the base model alone.

    Its own settings: ``strategy``, per scaling stage ``dict(depth=, width=, resolution=)``
    multipliers, or None for plain evolution at one budget; ``population``, ``generations``,
    ``mutations`` and ``halving``, see :class:`mmscale.search.EvolutionSearch`.
    """

    @staticmethod
    def make_search(
        family: FamilyFitness,
        seed: int,
        on_step: OnStep | None = None,
        *,
        strategy: Sequence[dict[str, float]] | None = None,
        **settings: Any,
    ) -> EvolutionSearch:
        """Builds the evolution."""
        given = None if strategy is None else _scalings(strategy)
        return EvolutionSearch(family, given, seed=seed, on_step=on_step, **settings)


def _find_base(space: SearchSpace, base: str | dict | Sequence[int]) -> Genotype:
    """The base model that a config names: an Arch in any form, or genes."""
    try:
        if isinstance(base, (list, tuple)):
            return space.genotype(np.array(base))
        return space.encode(get_arch(base))
    except ValueError as error:
        raise UsageError(f'base: {error}') from None


@LOOPS.register_module()
class ScalingLoop(SearchLoop):
    """Search of the strategy for a given base model.

    Its own settings: ``base``, an Arch as :func:`mmscale.arch.get_arch` finds it, or genes; and
    ``halving``, see :class:`mmscale.search.ScalingSearch`.
    """

    @staticmethod
    def make_search(
        family: FamilyFitness,
        seed: int,
        on_step: OnStep | None = None,
        *,
        base: str | dict | Sequence[int],
        **settings: Any,
    ) -> ScalingSearch:
        """Builds the scaling search, which has no randomness."""
        return ScalingSearch(family, _find_base(family.space, base), on_step=on_step, **settings)


@LOOPS.register_module()
class SeparateSearchLoop(SearchLoop):
    """A search per scaling stage of its own, to see what the joint search saves.

    Its own settings are those of :class:`MCEALoop`, see :class:`mmscale.search.SeparateSearch`.
    """

    @staticmethod
    def make_search(
        family: FamilyFitness, seed: int, on_step: OnStep | None = None, **settings: Any
    ) -> SeparateSearch:
        """Builds the searches of all scaling stages."""
        return SeparateSearch(family, seed=seed, on_step=on_step, **settings)


@LOOPS.register_module()
class RandomSearchLoop(SearchLoop):
    """Random search at a given number of evaluations, the baseline of the other searches.

    Its own setting: ``evaluations``, see :class:`mmscale.search.RandomSearch`.
    """

    @staticmethod
    def make_search(
        family: FamilyFitness, seed: int, on_step: OnStep | None = None, **settings: Any
    ) -> RandomSearch:
        """Builds the random search."""
        return RandomSearch(family, seed=seed, on_step=on_step, **settings)


@LOOPS.register_module()
class FamilyLoop(SearchLoop):
    """Scores one given family: a base model under a strategy that is not searched.

    Its own settings: ``base`` as for :class:`ScalingLoop`; ``strategy`` as for
    :class:`EvolutionLoop`, or ``compound``: depth, width and resolution take equal shares of
    every budget; see :class:`mmscale.search.GivenFamily`.
    """

    @staticmethod
    def make_search(
        family: FamilyFitness,
        seed: int,
        on_step: OnStep | None = None,
        *,
        base: str | dict | Sequence[int],
        strategy: str | Sequence[dict[str, float]],
        **settings: Any,
    ) -> GivenFamily:
        """Builds the family, which has no steps and no randomness."""
        given = None if strategy == 'compound' else _scalings(strategy)
        return GivenFamily(family, _find_base(family.space, base), given, **settings)
