"""Search loops: MMEngine's ``test_cfg`` of a search."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import socket
import time
from abc import abstractmethod
from collections.abc import Sequence
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from mmengine.dist import all_gather_object, get_dist_info
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner, save_checkpoint
from mmengine.runner.base_loop import BaseLoop

from mmscale.arch import Genotype, Scaling, SearchSpace, get_arch
from mmscale.cost import CostTable
from mmscale.engine.evaluator import SubnetEvaluator, content_of
from mmscale.models import SuperNetClassifier
from mmscale.registry import LOOPS
from mmscale.search import (
    MCEA,
    Archive,
    ChainStep,
    EvolutionSearch,
    FamilyFitness,
    Feasibility,
    Generation,
    GivenFamily,
    OnStep,
    Progress,
    RandomSearch,
    ScalingSearch,
    Scorer,
    Search,
    SearchResult,
)
from mmscale.version import __version__

_SECONDS_BETWEEN_LINES = 10.0

# What scores depend on, besides mmscale.
_PACKAGES = ('torch', 'mmengine', 'mmcv', 'mmpretrain', 'numpy', 'cv2')


def _version_of(package: str) -> str:
    return import_module(package).__version__


class _Ranks:
    """The processes of torch.distributed, for the search; one process is rank 0 of 1."""

    def __init__(self) -> None:
        self.rank, self.world_size = get_dist_info()

    def gather(self, items: list[str]) -> list[list[str]]:
        """Waits for all ranks; gives each of them every rank's items."""
        return all_gather_object(items)


class _ProgressLog:
    """Logs how far a search is, with an estimate of the time that is left at most."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._start: tuple[float, int] | None = None
        self._last = -math.inf
        self._step = ''

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if self._start is None:
            self._start = now, progress.fresh
        if progress.step == self._step and now - self._last < _SECONDS_BETWEEN_LINES:
            return
        self._step, self._last = progress.step, now
        line = f'{progress.step}: {progress.evaluations} evaluations'
        if progress.most_evaluations:
            line += f' of at most {progress.most_evaluations}'
        if progress.best is not None:
            line += f', best fitness {float(progress.best):.4f}'
        fresh = progress.fresh - self._start[1]
        if fresh and progress.most_evaluations:
            left = progress.most_evaluations - progress.evaluations
            seconds = (now - self._start[0]) / fresh * left / get_dist_info()[1]
            line += f', eta at most {timedelta(seconds=round(seconds))}'
        self._logger.info(line)


def write_json(path: Path, data: object) -> None:
    """Writes a JSON file in one atomic step: the old file stays until the new one is whole."""
    temporary = path.with_name(f'.{path.name}.{os.getpid()}')
    with temporary.open('w', encoding='utf-8') as file:
        json.dump(data, file, indent=1)
        file.write('\n')
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


class _History:
    """The events of a search as a JSON-lines file, a line as soon as there is an event.

    The file is started anew with the first event, so that a search that is refused leaves the
    one of an earlier search.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None

    def write(self, event: ChainStep | Generation) -> None:
        """Appends an event."""
        if self._file is None:
            self._file = self._path.open('w', encoding='utf-8')
        self._file.write(json.dumps(event.to_json()) + '\n')
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


class SearchLoop(BaseLoop):
    """What the search loops share: evaluator, archive, budgets, result.

    The loop writes into the runner's work dir: ``archive/`` and ``history.jsonl`` (the events of
    the search, for a report on the way) while it searches, and ``result.json``
    and ``archs/scaling_stage_<j>.json`` at the end; these depend on config, seed and weights
    alone. Beside them lie ``weights/scaling_stage_<j>.pth`` with the weights each network was
    scored with, to start training from or to ship, and ``timing.json`` with times and hosts.
    Resuming replays the search from the archive.

    Args:
        runner: The runner; its model is a SuperNetClassifier.
        dataloader: Config of the loader of scoring images.
        evaluator: Ignored: a candidate's score is counted by `subnet_evaluator`.
        calibration_dataloader: Config of the loader of training images for BN statistics.
        budget: Budget of the base model, in units of `metric`.
        metric: ``flops``, ``params`` or ``acts``.
        tolerance: Largest relative deviation from any budget.
        weights: Weight of every scaling stage in the fitness.
        seed: Seed of the search; by default the runner's.
        resume: Whether to continue the archive in the work dir.
        subnet_evaluator: Further settings of :class:`SubnetEvaluator`.
        **settings: Settings of the search itself, see :meth:`make_search`.

    Raises:
        TypeError: The model is of another kind, or a setting is unknown.
        ValueError: A setting is not allowed or no network meets the budgets.
    """

    def __init__(
        self,
        runner: Runner,
        dataloader: dict[str, Any],
        evaluator: object,
        calibration_dataloader: dict[str, Any],
        budget: float,
        metric: str = 'flops',
        tolerance: float = 0.05,
        weights: Sequence[float] | None = None,
        seed: int | None = None,
        resume: bool = False,
        subnet_evaluator: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        self._runner = runner
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if not isinstance(model, SuperNetClassifier):
            raise TypeError(
                f'{type(self).__name__} needs model.type=mmscale.SuperNetClassifier, got '
                f'{type(model).__name__}'
            )
        self.space = model.backbone.space
        self.seed = runner.seed if seed is None else seed
        self.resume = resume
        self.archive_dir = Path(runner.work_dir) / 'archive'
        if not resume and any(self.archive_dir.glob('*.jsonl')):
            raise ValueError(
                f'work_dir={runner.work_dir} holds the archive of an earlier search: continue it '
                f'with --resume, or take another work dir'
            )
        feasibility = Feasibility(CostTable(self.space), budget, metric, tolerance)
        self.family = FamilyFitness(feasibility, weights)
        self.history = _History(Path(runner.work_dir) / 'history.jsonl')
        self.search = self.make_search(self.family, self.seed, self.on_step, **settings)
        self.evaluator = SubnetEvaluator(
            model, dataloader, calibration_dataloader, **(subnet_evaluator or {})
        )

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

    def on_step(self, step: ChainStep | Generation) -> None:
        """Logs a step of the chain, and writes every event to the history."""
        if get_dist_info()[0] == 0:
            self.history.write(step)
        if isinstance(step, Generation):
            return
        strategy = ', '.join(
            f'({s.depth:g}, {s.width:g}, {round(s.resolution * self.space.resolution)} px)'
            for s in step.strategy
        )
        fitness = '' if step.fitness is None else f' fitness {float(step.fitness):.4f},'
        self._runner.logger.info(
            f'chain: {step.kind}, round {step.round}:{fitness} {step.evaluations} evaluations, '
            f'strategy (depth, width, resolution) {strategy}'
        )

    def run(self) -> dict[str, float]:
        """Searches and writes the result.

        Returns:
            The fitness, for the runner's log.
        """
        start = time.monotonic()
        ranks = _Ranks()
        fingerprint = self.evaluator.fingerprint
        archive = Archive(self.archive_dir, fingerprint, ranks.rank)
        if len(archive):
            self._runner.logger.info(f'replaying {len(archive)} evaluations of {self.archive_dir}')
        try:
            scorer = Scorer(archive, self.evaluator, ranks, _ProgressLog(self._runner.logger))
            self.family.scorer = scorer
            result = self.search.run()
            if ranks.rank == 0:
                self._write(result, fingerprint, scorer.fresh, time.monotonic() - start)
        finally:
            archive.close()
            self.history.close()
        self._runner.logger.info(str(result))
        return {'fitness': float(result.fitness)}

    def _config_hash(self, fingerprint: dict) -> str:
        """SHA-256 of what the config says of network, data and search, and of the evaluator."""
        config = self._runner.cfg
        search = {key: value for key, value in config.test_cfg.items() if key != 'resume'}
        parts = {
            'model': config.model,
            'data_preprocessor': config.get('data_preprocessor'),
            'test_dataloader': config.test_dataloader,
            'search': search,
            'evaluator': fingerprint,
            'seed': self.seed,
        }
        text = json.dumps(content_of(parts), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def _write(
        self, result: SearchResult, fingerprint: dict, evaluated: int, seconds: float
    ) -> None:
        work_dir = Path(self._runner.work_dir)
        (work_dir / 'archs').mkdir(exist_ok=True)
        (work_dir / 'weights').mkdir(exist_ok=True)
        for member in result.family:
            name = f'scaling_stage_{member.scaling_stage}'
            write_json(work_dir / 'archs' / f'{name}.json', member.arch.to_json())
            net = self.evaluator.extract(member.arch)
            weights = work_dir / 'weights' / f'{name}.pth'
            save_checkpoint({'state_dict': net.state_dict()}, str(weights))
        # Last of what others build on: where it lies, the search is complete.
        write_json(
            work_dir / 'result.json',
            {
                **result.to_json(),
                'convention': self.family.feasibility.table.convention,
                'config_hash': self._config_hash(fingerprint),
                'versions': {
                    'mmscale': __version__,
                    **{name: _version_of(name) for name in _PACKAGES},
                },
            },
        )
        timing = work_dir / 'timing.json'
        runs = json.loads(timing.read_text()) if timing.is_file() and self.resume else []
        runs.append(
            {
                'seconds': round(seconds, 1),
                'evaluations_of_rank_0': evaluated,
                'processes': get_dist_info()[1],
                'host': socket.gethostname(),
            }
        )
        write_json(timing, runs)


@LOOPS.register_module()
class MCEALoop(SearchLoop):
    """Joint search of base model and scaling strategy.

    Its own settings: ``population``, ``generations``, ``rounds``, ``num_base_models`` and
    ``mutations``, see :class:`mmscale.search.MCEA`.
    """

    @staticmethod
    def make_search(
        family: FamilyFitness, seed: int, on_step: OnStep | None = None, **settings: Any
    ) -> MCEA:
        """Builds the Markov-chain evolution."""
        return MCEA(family, seed=seed, on_step=on_step, **settings)


def _scalings(strategy: Sequence[dict[str, float]]) -> tuple[Scaling, ...]:
    """The strategy that a config spells out."""
    return tuple(Scaling(**scaling) for scaling in strategy)


@LOOPS.register_module()
class EvolutionLoop(SearchLoop):
    """Search of the base model for a given strategy.

    Its own settings: ``strategy``, per scaling stage ``dict(depth=, width=, resolution=)``
    multipliers; ``population``, ``generations`` and ``mutations``, see
    :class:`mmscale.search.EvolutionSearch`.
    """

    @staticmethod
    def make_search(
        family: FamilyFitness,
        seed: int,
        on_step: OnStep | None = None,
        *,
        strategy: Sequence[dict[str, float]],
        **settings: Any,
    ) -> EvolutionSearch:
        """Builds the evolution."""
        strategy = _scalings(strategy)
        return EvolutionSearch(family, strategy, seed=seed, on_step=on_step, **settings)


def _find_base(space: SearchSpace, base: str | dict | Sequence[int]) -> Genotype:
    """The base model that a config names: an Arch in any form, or genes."""
    if isinstance(base, (list, tuple)):
        return space.genotype(np.array(base))
    return space.encode(get_arch(base))


@LOOPS.register_module()
class ScalingLoop(SearchLoop):
    """Search of the strategy for a given base model.

    Its own setting: ``base``, an Arch as :func:`mmscale.arch.get_arch` finds it, or genes; see
    :class:`mmscale.search.ScalingSearch`.
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
