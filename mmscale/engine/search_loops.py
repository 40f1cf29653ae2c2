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
from dataclasses import asdict
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import all_gather_object, get_dist_info
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner, save_checkpoint
from mmengine.runner.base_loop import BaseLoop

from mmscale.arch import (
    Genotype,
    Rounding,
    Scaling,
    SearchSpace,
    apply_scaling,
    compound_scaling,
    get_arch,
)
from mmscale.cost import CostTable, count, match_scaling
from mmscale.engine.evaluator import SubnetEvaluator, content_of
from mmscale.models import SuperNetClassifier
from mmscale.registry import LOOPS
from mmscale.search import (
    MCEA,
    Archive,
    ChainStep,
    EvolutionSearch,
    FamilyFitness,
    FamilyMember,
    Feasibility,
    Progress,
    RandomSearch,
    ScalingSearch,
    Scorer,
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


class SearchLoop(BaseLoop):
    """What the search loops share: evaluator, archive, budgets, result.

    The loop writes into the runner's work dir: ``archive/`` while it searches and ``result.json``
    and ``archs/scaling_stage_<j>.json`` at the end, which depend on config, seed and weights
    alone, ``weights/scaling_stage_<j>.pth`` with the weights each network was scored with, to
    start training from or to ship, and ``timing.json`` with times and hosts. Resuming replays
    the search from the archive.

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

    Raises:
        TypeError: The model is of another kind.
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
        self.weights = weights
        self.archive_dir = Path(runner.work_dir) / 'archive'
        if not resume and any(self.archive_dir.glob('*.jsonl')):
            raise ValueError(
                f'work_dir={runner.work_dir} holds the archive of an earlier search: continue it '
                f'with --resume, or take another work dir'
            )
        self.feasibility = Feasibility(CostTable(self.space), budget, metric, tolerance)
        self.evaluator = SubnetEvaluator(
            model, dataloader, calibration_dataloader, **(subnet_evaluator or {})
        )

    @abstractmethod
    def search(self, family: FamilyFitness) -> SearchResult:
        """Runs the search."""

    def log_step(self, step: ChainStep) -> None:
        """Logs a step of the chain."""
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
            result = self.search(FamilyFitness(scorer, self.feasibility, self.weights))
            if ranks.rank == 0:
                self._write(result, fingerprint, scorer.fresh, time.monotonic() - start)
        finally:
            archive.close()
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
                'convention': self.feasibility.table.convention,
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
    """Joint search of base model and scaling strategy, see :class:`mmscale.search.MCEA`.

    Args:
        population: Base models of a generation.
        generations: Generations of each base evolution.
        rounds: Rounds of base evolution and scaling search.
        num_base_models: Size of the fixed set of base models behind the initial strategy.
        mutations: Expected number of gene changes of a child.
        **kwargs: As for :class:`SearchLoop`.
    """

    def __init__(
        self,
        *args: Any,
        population: int = 64,
        generations: int = 40,
        rounds: int = 8,
        num_base_models: int = 20,
        mutations: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._settings = dict(
            population=population,
            generations=generations,
            rounds=rounds,
            num_base_models=num_base_models,
            mutations=mutations,
        )

    def search(self, family: FamilyFitness) -> SearchResult:
        """Runs the Markov-chain evolution."""
        return MCEA(family, seed=self.seed, on_step=self.log_step, **self._settings).run()


@LOOPS.register_module()
class EvolutionLoop(SearchLoop):
    """Search of the base model for a given strategy.

    Args:
        strategy: Per scaling stage ``dict(depth=, width=, resolution=)`` multipliers.
        population: Base models of a generation.
        generations: Generations of the evolution.
        mutations: Expected number of gene changes of a child.
        **kwargs: As for :class:`SearchLoop`.
    """

    def __init__(
        self,
        *args: Any,
        strategy: Sequence[dict[str, float]],
        population: int = 64,
        generations: int = 40,
        mutations: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.strategy = tuple(Scaling(**scaling) for scaling in strategy)
        self._settings = dict(population=population, generations=generations, mutations=mutations)

    def search(self, family: FamilyFitness) -> SearchResult:
        """Runs the evolution."""
        return EvolutionSearch(
            family, self.strategy, seed=self.seed, on_step=self.log_step, **self._settings
        ).run()


def _find_base(space: SearchSpace, base: str | dict | Sequence[int]) -> Genotype:
    """The base model that a config names: an Arch in any form, or genes."""
    if isinstance(base, (list, tuple)):
        return space.genotype(np.array(base))
    return space.encode(get_arch(base))


@LOOPS.register_module()
class ScalingLoop(SearchLoop):
    """Search of the strategy for a given base model.

    Args:
        base: The base model: an Arch as :func:`mmscale.arch.get_arch` finds it, or genes.
        **kwargs: As for :class:`SearchLoop`.
    """

    def __init__(self, *args: Any, base: str | dict | Sequence[int], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.base = _find_base(self.space, base)

    def search(self, family: FamilyFitness) -> SearchResult:
        """Scores the feasible scalings."""
        return ScalingSearch(family, self.base, on_step=self.log_step).run()


@LOOPS.register_module()
class RandomSearchLoop(SearchLoop):
    """Random search at a given number of evaluations, the baseline of the other searches.

    Args:
        evaluations: Distinct Archs to evaluate.
        **kwargs: As for :class:`SearchLoop`.
    """

    def __init__(self, *args: Any, evaluations: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.evaluations = evaluations

    def search(self, family: FamilyFitness) -> SearchResult:
        """Draws families and keeps the best."""
        return RandomSearch(family, self.evaluations, self.seed, self.log_step).run()


@LOOPS.register_module()
class FamilyLoop(SearchLoop):
    """Scores one given family: a base model under a strategy that is not searched.

    The family is for comparison, not a candidate: where rounding makes it miss a budget by more
    than the tolerance, it is scored all the same, with a warning, and the result says by how much.

    Args:
        base: The base model, as for :class:`ScalingLoop`.
        strategy: Per scaling stage ``dict(depth=, width=, resolution=)`` multipliers; or
            ``compound``: depth, width and resolution take equal shares of every budget.
        **kwargs: As for :class:`SearchLoop`.
    """

    def __init__(
        self,
        *args: Any,
        base: str | dict | Sequence[int],
        strategy: str | Sequence[dict[str, float]],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.base = _find_base(self.space, base)
        arch = self.space.decode(self.base)
        rounding = self.space.rounding
        if strategy == 'compound':
            # Rounding up would turn one block of a stage into two at any factor.
            rounding = Rounding('nearest')
            self.strategy = tuple(
                match_scaling(
                    arch,
                    compound_scaling,
                    2.0**j,
                    self.space.rule,
                    self.feasibility.metric,
                    rounding,
                )
                for j in range(len(self.space.scaling_stages))
            )
        else:
            self.strategy = tuple(Scaling(**scaling) for scaling in strategy)
        self.archs = [
            apply_scaling(arch, scaling, self.space.rule, rounding) for scaling in self.strategy
        ]

    def search(self, family: FamilyFitness) -> SearchResult:
        """Scores the family."""
        costs = [getattr(count(arch), self.feasibility.metric) for arch in self.archs]
        deviations = [cost / (costs[0] * 2**j) - 1 for j, cost in enumerate(costs)]
        for j, deviation in enumerate(deviations):
            if abs(deviation) > self.feasibility.tolerance:
                self._runner.logger.warning(
                    f'scaling stage {j} of the given family misses its budget by {deviation:+.1%}'
                )
        family.scorer.step = 'given family'
        scores = family.scorer.score(self.archs)
        return SearchResult(
            base=self.base,
            family=tuple(
                FamilyMember(j, scaling, arch, count(arch), score)
                for j, (scaling, arch, score) in enumerate(
                    zip(self.strategy, self.archs, scores, strict=True)
                )
            ),
            fitness=family.mean([scores[j] for j in family.scored_stages]),
            chain=(),
            evaluations=family.scorer.evaluations,
            seed=None,
            settings={
                'strategy': [asdict(scaling) for scaling in self.strategy],
                'deviations': [round(deviation, 6) for deviation in deviations],
            },
        )
