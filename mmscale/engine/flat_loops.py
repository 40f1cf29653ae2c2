"""A loop per search, for configs that have the settings of the search beside those of the loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from mmengine.runner import Runner

from mmscale.engine.search_loop import LOOP_KEYS, SearchLoop
from mmscale.errors import UsageError
from mmscale.registry import LOOPS


class FlatLoop(SearchLoop):
    """A :class:`SearchLoop` of one search: ``test_cfg`` has all settings side by side.

    ``dict(type='mmscale.MCEALoop', population=64, budget=340e6)`` is
    ``dict(type='mmscale.SearchLoop', search=dict(type='mmscale.MCEA', population=64),
    budget=340e6)``.
    """

    search_type: ClassVar[str]
    budget_keys: ClassVar[tuple[str, ...]] = (
        *('budget', 'metric', 'tolerance', 'weights', 'caps', 'latency_model'),
    )

    def __init__(self, runner: Runner, dataloader: dict, evaluator: object, **settings: Any):
        super().__init__(runner, dataloader, evaluator, **self.nested(settings))

    @classmethod
    def nested(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of :class:`SearchLoop` that mean the same.

        Raises:
            UsageError: They hold a search already.
        """
        if 'search' in settings:
            raise UsageError(
                f'test_cfg.search needs type=mmscale.SearchLoop; of mmscale.{cls.__name__} the '
                f'settings of the search stand in test_cfg itself'
            )
        shared, search = {}, {'type': cls.search_type}
        for key, value in settings.items():
            (shared if key in (*LOOP_KEYS, *cls.budget_keys) else search)[key] = value
        return {'search': search, **shared}


@LOOPS.register_module()
class MCEALoop(FlatLoop):
    """Joint search of base model and scaling strategy: :class:`mmscale.search.MCEA`."""

    search_type = 'mmscale.MCEA'


@LOOPS.register_module()
class EvolutionLoop(FlatLoop):
    """Search of the base model: :class:`mmscale.search.EvolutionSearch`."""

    search_type = 'mmscale.EvolutionSearch'


@LOOPS.register_module()
class ScalingLoop(FlatLoop):
    """Search of the strategy of a given base model: :class:`mmscale.search.ScalingSearch`."""

    search_type = 'mmscale.ScalingSearch'


@LOOPS.register_module()
class SeparateSearchLoop(FlatLoop):
    """A search per scaling stage of its own: :class:`mmscale.search.SeparateSearch`."""

    search_type = 'mmscale.SeparateSearch'


@LOOPS.register_module()
class RandomSearchLoop(FlatLoop):
    """Random search: :class:`mmscale.search.RandomSearch`."""

    search_type = 'mmscale.RandomSearch'


@LOOPS.register_module()
class FamilyLoop(FlatLoop):
    """Scores one given family: :class:`mmscale.search.GivenFamily`."""

    search_type = 'mmscale.GivenFamily'


@LOOPS.register_module()
class ParetoLoop(FlatLoop):
    """The front of score against one cost: :class:`mmscale.search.ParetoSearch`."""

    search_type = 'mmscale.ParetoSearch'
    budget_keys = ()
