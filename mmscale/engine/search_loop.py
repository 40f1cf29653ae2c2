"""The search of a config: MMEngine's ``test_cfg`` of every search."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import socket
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import get_dist_info
from mmengine.runner import Runner, save_checkpoint
from mmengine.runner.base_loop import BaseLoop

from mmscale.arch.checks import integer
from mmscale.arch.json_files import read_json
from mmscale.arch.origin import origin_of
from mmscale.config_parts import type_name
from mmscale.cost import CostTable, LatencyModel
from mmscale.engine.distributed import Ranks
from mmscale.engine.evaluator import SubnetEvaluator
from mmscale.engine.images import content_of
from mmscale.engine.space_settings import check_settings
from mmscale.engine.wrappers import unwrapped_model
from mmscale.errors import UsageError
from mmscale.files import write_json
from mmscale.models import SuperNetTraining
from mmscale.registry import LOOPS, SEARCHES, TASK_UTILS
from mmscale.search import (
    MCEA,
    Archive,
    ChainStep,
    EvolutionSearch,
    FamilyFitness,
    Feasibility,
    Generation,
    GivenFamily,
    ParetoResult,
    ParetoSearch,
    RandomSearch,
    Result,
    ScalingSearch,
    Scorer,
    Search,
    SearchResult,
    SeparateSearch,
)
from mmscale.search.feasibility import Budget
from mmscale.search.final import final_round
from mmscale.search.forecast import Forecast, forecast
from mmscale.search.limits import PerStage
from mmscale.search.reporting import History, ProgressLog, SecondsLog, describe
from mmscale.version import __version__

# The searches themselves know nothing of registries.
for _search in (
    MCEA, EvolutionSearch, ScalingSearch, SeparateSearch, RandomSearch, GivenFamily, ParetoSearch,
):  # fmt: skip
    SEARCHES.register_module(module=_search)

# Settings that say how to go on, not what to search.
_OTHER_KEYS = ('resume', 'retry_failed')
# Settings of the evaluator that say how its images are kept, and change no score.
_KEEPING_KEYS = ('cache', 'cache_dir', 'cache_bytes', 'candidates_per_pass')
# Settings of the loop itself, not of the search or of its budgets.
_FINAL_KEYS = ('final_images', 'final_candidates')
LOOP_KEYS = ('calibration_dataloader', 'subnet_evaluator', 'seed', *_FINAL_KEYS, *_OTHER_KEYS)

# Times of thousands of runs.
_MOST_TIMING_BYTES = 2**20

# What scores depend on, besides mmscale.
_PACKAGES = ('torch', 'mmengine', 'mmcv', 'mmpretrain', 'numpy', 'cv2')


def build_search(
    table: CostTable,
    seed: int,
    search: dict[str, Any],
    budget: Budget | None = None,
    metric: str | None = None,
    tolerance: float | None = None,
    weights: Sequence[float] | None = None,
    caps: Mapping[str, PerStage] | None = None,
    latency_model: LatencyModel | str | Path | None = None,
    **unknown: object,
) -> Search:
    """Builds the search of a config; nothing is evaluated, no model or data is needed.

    Args:
        table: Costs of the space.
        seed: Seed of the search.
        search: ``type``, registered in ``SEARCHES``, and the settings of its own.
        budget: Budget of the base model, in units of `metric`; or several by metric, see
            :class:`mmscale.search.Feasibility`.
        metric: ``flops`` (the default), ``params``, ``acts`` or ``latency``.
        tolerance: Largest relative deviation from any budget, by default 0.05.
        weights: Weight of every scaling stage in the fitness.
        caps: By metric, what no network of the family may exceed.
        latency_model: Predicts latencies, or the JSON file of such a model.
        **unknown: Nothing else is known.

    Raises:
        TypeError: A setting of the search is unknown or missing.
        ValueError: A setting is not allowed, or no network meets the budgets.
    """
    if unknown:
        raise UsageError(
            f'test_cfg has no setting {", ".join(unknown)}; those of the search itself are in '
            f'test_cfg.search'
        )
    if not isinstance(search, dict):
        raise UsageError(f'search={search!r:.60} must be a dict with type')
    settings = dict(search)
    name = str(settings.get('type'))
    search_class = SEARCHES.module_dict.get(type_name(settings.pop('type', None)))
    if search_class is None:
        known = ', '.join(f'mmscale.{known}' for known in SEARCHES.module_dict)
        raise UsageError(f'search.type={name!r:.60} is not one of {known}')
    problem: dict[str, Any] = {'table': table, 'seed': seed}
    budgets = dict(budget=budget, metric=metric, tolerance=tolerance, weights=weights)
    budgets.update(caps=caps, latency_model=latency_model)
    budgets = {key: value for key, value in budgets.items() if value is not None}
    wanted = inspect.signature(search_class).parameters
    if 'family' in wanted:
        if budget is None:
            what = 'a family of networks' if len(table.space.scaling_stages) > 1 else 'networks'
            raise UsageError(f'budget is not set: {name} searches {what} within it')
        weights = budgets.pop('weights', None)
        problem['family'] = FamilyFitness(Feasibility(table, **budgets), weights)
    else:
        own = ('caps', 'latency_model')
        problem |= {key: budgets.pop(key) for key in own if key in budgets and key in wanted}
        if budgets:
            given = ', '.join(f'{key}={value!r:.30}' for key, value in budgets.items())
            raise UsageError(f'{given}: {name} has no budgets, set them to None')
    return search_class(
        **{key: value for key, value in problem.items() if key in wanted}, **settings
    )


def _merged(old: dict[str, Any] | None, new: dict[str, Any] | None) -> dict[str, Any] | None:
    """A part of a config with what another says of it, as in a child config."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return old if new is None else new
    both = Config(dict(part=old))
    both.merge_from_dict(dict(part=new))
    return both.part


def _version_of(package: str) -> str:
    return import_module(package).__version__


def _runs_in(timing: Path) -> list[Any]:
    """Times of earlier runs; a damaged file of them ends no search that has its result."""
    try:
        runs = read_json(timing, _MOST_TIMING_BYTES)
    except (OSError, ValueError):
        return []
    plain = (int, float, str)
    return [
        run
        for run in (runs if isinstance(runs, list) else [])
        if isinstance(run, dict) and all(isinstance(value, plain) for value in run.values())
    ]


def _remove_others(folder: Path, suffix: str, names: Collection[str]) -> None:
    """Removes networks that only an earlier result in the same work dir had."""
    for path in folder.glob(f'*{suffix}'):
        if re.fullmatch(r'(front|scaling_stage)_\d+', path.stem) and path.stem not in names:
            path.unlink()


@LOOPS.register_module()
class SearchLoop(BaseLoop):
    """Runs a search with the scores of a super-supernet's networks, and writes what it finds.

    The loop writes into the runner's work dir: ``archive/`` and ``history.jsonl`` (the events of
    the search, for a report on the way) while it searches, and ``result.json`` and
    ``archs/<network>.json`` at the end; these depend on config, seed and weights alone. Beside
    them lie ``weights/<network>.pth`` with the weights each network was scored with, to start
    training from or to ship, ``timing.json`` with times and hosts, and ``seconds/`` with those
    of every evaluation. Resuming replays the search from the archive.

    Args:
        runner: The runner; its model is a SuperNetClassifier, or a SuperNetDetector, whose cost
            is that of backbone, neck and head.
        dataloader: Config of the loader of scoring images.
        evaluator: Ignored: a candidate's score is counted by `subnet_evaluator`.
        search: The search: its ``type``, registered in ``SEARCHES``, and its settings.
        calibration_dataloader: Config of the loader of training images for BN statistics; or what
            differs from ``calibration_dataloader`` of the config, beside its ``test_dataloader``.
        seed: Seed of the search; by default the runner's.
        resume: Whether to continue the archive in the work dir.
        retry_failed: Whether to evaluate anew what the archive has as failed.
        subnet_evaluator: Further settings of :class:`SubnetEvaluator`, or with ``type`` of
            another: :class:`DetectionEvaluator` for a detector.
        final_images: Scoring images of the final round, more than `subnet_evaluator` takes: on
            them the leaders are scored that the search does not tell apart, see
            :func:`mmscale.search.final.final_round`. None for no such round.
        final_candidates: Leaders that take part at most.
        **budgets: ``budget``, ``metric``, ``tolerance``, ``weights``, ``caps`` and
            ``latency_model``, see :func:`build_search`.

    Raises:
        TypeError: The model is of another kind, or a setting is unknown.
        ValueError: A setting is not allowed or no network meets the budgets.

    Example:
        >>> test_cfg = dict(
        ...     type='mmscale.SearchLoop',
        ...     search=dict(type='mmscale.MCEA', population=64, generations=40, rounds=8),
        ...     budget=340e6,
        ...     weights=[0, 1, 1, 1],
        ... )
    """

    def __init__(
        self,
        runner: Runner,
        dataloader: dict[str, Any],
        evaluator: object,
        search: dict[str, Any],
        calibration_dataloader: dict[str, Any] | None = None,
        seed: int | None = None,
        resume: bool = False,
        retry_failed: bool = False,
        subnet_evaluator: dict[str, Any] | None = None,
        final_images: int | None = None,
        final_candidates: int = 5,
        **budgets: Any,
    ) -> None:
        self._runner = runner
        model = unwrapped_model(runner)
        if not isinstance(model, SuperNetTraining):
            raise TypeError(
                f'{type(self).__name__} needs model.type=mmscale.SuperNetClassifier or '
                f'mmscale.SuperNetDetector, got {type(model).__name__}'
            )
        check_settings(runner.cfg)
        self.seed = runner.seed if seed is None else seed
        integer('seed', self.seed, 0)
        self.resume = resume
        self.retry_failed = retry_failed
        self.archive_dir = Path(runner.work_dir) / 'archive'
        if not resume and any(self.archive_dir.glob('*.jsonl')):
            raise UsageError(
                f'work_dir={runner.work_dir} holds the archive of an earlier search: continue it '
                f'with --resume, or take another work dir'
            )
        self.table = CostTable(model.backbone.space, after_stages=model.cost_after_stages)
        # Built and checked before any data is read.
        self.search = build_search(self.table, self.seed, search, **budgets)
        self.final_candidates = integer('final_candidates', final_candidates, 2)
        if final_images is not None:
            self._check_final(integer('final_images', final_images))
        calibration = _merged(runner.cfg.get('calibration_dataloader'), calibration_dataloader)
        if not calibration or 'dataset' not in calibration:
            raise UsageError(
                'calibration_dataloader needs a dataset of training images; it stands beside '
                'test_dataloader, and one in test_cfg takes its place as a whole'
            )
        self.history = History(Path(runner.work_dir) / 'history.jsonl')
        settings = {'type': SubnetEvaluator, **(subnet_evaluator or {})}
        if settings.get('cache') == 'disk':
            settings.setdefault('cache_dir', Path(runner.work_dir) / 'images')
        self.evaluator: SubnetEvaluator = TASK_UTILS.build(
            settings,
            default_args=dict(
                model=model, dataloader=dataloader, calibration_dataloader=calibration
            ),
        )
        self.final_evaluator = None
        if final_images is not None:
            self.final_evaluator = self._make_final(final_images)

    def _check_final(self, images: int) -> None:
        """Refuses a final round of a search that has no runners-up."""
        if not isinstance(self.search, (MCEA, EvolutionSearch)):
            raise UsageError(
                f'final_images={images}: {type(self.search).__name__} has no runners-up to score '
                'on more images; mmscale.MCEA and mmscale.EvolutionSearch have'
            )

    def _make_final(self, images: int) -> SubnetEvaluator:
        if not self.evaluator.counts_answers:
            raise UsageError(
                f'final_images={images}: {type(self.evaluator).__name__} counts no right answers, '
                'so that nothing says which scores are told apart'
            )
        if images <= self.evaluator.num_images:
            raise UsageError(
                f'final_images={images} must be more than the {self.evaluator.num_images} images '
                'of the search (subnet_evaluator.max_images)'
            )
        return self.evaluator.on_images(images, 'final_images')

    @classmethod
    def nested(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a ``test_cfg``, with those of the search itself under ``search``."""
        return dict(settings)

    def forecast(self) -> Forecast:
        """What the search is expected to evaluate.

        Raises:
            ValueError: No network meets the budgets.
        """
        return forecast(self.search, self.seed)

    def on_step(self, step: ChainStep | Generation) -> None:
        """Logs a step of the chain, and writes every event to the history."""
        if get_dist_info()[0] == 0:
            self.history.write(step)
        line = describe(step, self.table.space.resolution)
        if line is not None:
            self._runner.logger.info(line)

    def run(self) -> dict[str, float]:
        """Searches and writes the result.

        Returns:
            The best fitness, for the runner's log.
        """
        start = time.monotonic()
        self._runner.logger.info(f'{self.table.space}')
        ranks = Ranks()
        # All images at this resolution are part of the fingerprint: no rank makes them alone.
        self.evaluator.prepare_together(self.table.space.resolution, ranks)
        fingerprint = self.evaluator.fingerprint
        archive = self._open_archive(self.archive_dir, fingerprint, ranks.rank)
        seconds = Path(self._runner.work_dir) / 'seconds' / f'rank{ranks.rank:04d}.jsonl'
        on_evaluated = SecondsLog(seconds)
        try:
            progress = ProgressLog(self._runner.logger, ranks.world_size)
            # Of rank 0 alone are the log lines.
            expected = self._expected_evaluations() if ranks.rank == 0 else 0
            scorer = Scorer(archive, self.evaluator, ranks, progress, on_evaluated, expected)
            result = self.search.run(scorer, self.on_step)
            if isinstance(result, (SearchResult, ParetoResult)):
                result = replace(result, counted=self.evaluator.counts_answers)
            if isinstance(result, SearchResult):
                result = self._finish(result, scorer)
            if ranks.rank == 0:
                self._write(result, fingerprint, scorer.fresh, time.monotonic() - start)
        finally:
            archive.close()
            on_evaluated.close()
            self.history.close()
        self._runner.logger.info(str(result))
        return {'fitness': float(result.fitness)}

    def _finish(self, result: SearchResult, scorer: Scorer) -> SearchResult:
        """Scores the leaders on more images, if that was asked for and they are not told apart."""
        if self.final_evaluator is None:
            return result
        finished = final_round(
            result,
            self.search.family,
            self.final_candidates,
            scorer,
            partial(self._open_final, scorer),
        )
        if finished.final is None:
            self._runner.logger.info(
                f'no final round: the family is told apart from its {len(result.runners_up)} '
                'runners-up'
            )
        return finished

    @contextmanager
    def _open_final(self, scorer: Scorer) -> Iterator[Scorer]:
        """Opens what scores on the images of the final round, beside the scorer of the search."""
        ranks = scorer.communicator
        self.final_evaluator.prepare_together(self.table.space.resolution, ranks)
        fingerprint = self.final_evaluator.fingerprint
        directory = Path(self._runner.work_dir) / 'final'
        with self._open_archive(directory, fingerprint, ranks.rank) as archive:
            yield Scorer(
                archive, self.final_evaluator, ranks, scorer.progress, scorer.on_evaluated
            )

    def _open_archive(self, directory: Path, fingerprint: dict[str, Any], rank: int) -> Archive:
        """Opens an archive and says what is in it."""
        logger = self._runner.logger
        archive = Archive(directory, fingerprint, rank)
        for path in archive.cut_off:
            logger.info(f'{path}: its last line was cut off while it was written, and is dropped')
        failed = len(archive.failures)
        if self.retry_failed:
            archive.forget_failures()
        if len(archive):
            logger.info(f'replaying {len(archive)} evaluations of {directory}')
        if failed:
            what = 'are evaluated anew' if self.retry_failed else 'count as failed'
            logger.info(f'{failed} of them could not be scored before and {what}')
        return archive

    @property
    def most_final(self) -> tuple[int, int] | None:
        """Networks of the final round at most, and the images for each; None without one."""
        if self.final_evaluator is None:
            return None
        stages = len(self.search.family.scored_stages)
        return self.final_candidates * stages, self.final_evaluator.num_images

    def _expected_evaluations(self) -> int:
        if getattr(self.search, 'evaluations', None) is not None:
            return self.search.most_evaluations
        try:
            return len(self.forecast().candidates)
        except ValueError:
            return 0  # The search itself will say what is wrong.

    def _config_hash(self, fingerprint: dict) -> str:
        """SHA-256 of what the config says of network, data and search, and of the evaluator."""
        config = self._runner.cfg
        search = {key: value for key, value in config.test_cfg.items() if key not in _OTHER_KEYS}
        if search.get('subnet_evaluator') is not None:
            search['subnet_evaluator'] = {
                key: value
                for key, value in search['subnet_evaluator'].items()
                if key not in _KEEPING_KEYS
            }
        parts: dict[str, Any] = {
            'model': config.model,
            'data_preprocessor': config.get('data_preprocessor'),
            'test_dataloader': config.test_dataloader,
            'search': search,
            'evaluator': fingerprint,
            'seed': self.seed,
        }
        if 'calibration_dataloader' in config:
            parts['calibration_dataloader'] = config.calibration_dataloader
        text = json.dumps(content_of(parts), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def _write(self, result: Result, fingerprint: dict, evaluated: int, seconds: float) -> None:
        work_dir = Path(self._runner.work_dir)
        (work_dir / 'archs').mkdir(exist_ok=True)
        (work_dir / 'weights').mkdir(exist_ok=True)
        origin = origin_of(self._runner.cfg)
        for name, arch in result.networks.items():
            arch.save(work_dir / 'archs' / f'{name}.json', origin)
            net = self.evaluator.extract(arch)
            weights = work_dir / 'weights' / f'{name}.pth'
            state = {'state_dict': net.state_dict()}
            save_checkpoint(state, str(weights), backend_args={'backend': 'atomic'})
        # Last of what others build on: where it lies, the search is complete.
        write_json(
            work_dir / 'result.json',
            {
                **result.to_json(),
                'convention': self.table.convention,
                'config_hash': self._config_hash(fingerprint),
                'origin': origin.to_json(),
                'versions': {
                    'mmscale': __version__,
                    **{name: _version_of(name) for name in _PACKAGES},
                },
            },
        )
        _remove_others(work_dir / 'archs', '.json', result.networks)
        _remove_others(work_dir / 'weights', '.pth', result.networks)
        timing = work_dir / 'timing.json'
        runs = _runs_in(timing) if self.resume else []
        used = [self.evaluator, *([self.final_evaluator] if self.final_evaluator else [])]
        runs.append(
            {
                'seconds': round(seconds, 1),
                'evaluations': result.evaluations,
                'evaluations_of_rank_0': evaluated,
                'images_of_rank_0': sum(one.images_seen for one in used),
                'images_saved_of_rank_0': sum(one.images_saved for one in used),
                'processes': get_dist_info()[1],
                'host': socket.gethostname(),
            }
        )
        write_json(timing, runs)
