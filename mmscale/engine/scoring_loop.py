"""What all searches in a super-supernet share as MMEngine's ``test_cfg``."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import time
from abc import abstractmethod
from collections.abc import Collection
from datetime import timedelta
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_dist_info
from mmengine.runner import Runner, save_checkpoint
from mmengine.runner.base_loop import BaseLoop
from torch import distributed

from mmscale.arch import Arch
from mmscale.arch.checks import integer
from mmscale.arch.json_files import read_json
from mmscale.cost import CostTable
from mmscale.engine.evaluator import SubnetEvaluator, content_of
from mmscale.engine.wrappers import unwrapped_model
from mmscale.errors import UsageError
from mmscale.files import write_json
from mmscale.models import SuperNetTraining
from mmscale.registry import TASK_UTILS
from mmscale.search import (
    Archive,
    ChainStep,
    Generation,
    ParetoResult,
    Scorer,
    SearchResult,
)
from mmscale.search.forecast import Forecast
from mmscale.search.reporting import History, ProgressLog, SecondsLog, describe
from mmscale.version import __version__

Result = SearchResult | ParetoResult

# Settings that say how to go on, not what to search.
_OTHER_KEYS = ('resume', 'retry_failed')

# What scores depend on, besides mmscale.
_PACKAGES = ('torch', 'mmengine', 'mmcv', 'mmpretrain', 'numpy', 'cv2')


def _version_of(package: str) -> str:
    return import_module(package).__version__


# A rank may wait for another's evaluations; of a dead one the launcher tells.
_PATIENCE = timedelta(days=7)


def _runs_in(timing: Path) -> list[Any]:
    """Times of earlier runs; a damaged file of them ends no search that has its result."""
    try:
        runs = read_json(timing)
    except (OSError, ValueError):
        return []
    return runs if isinstance(runs, list) else []


def _remove_others(folder: Path, suffix: str, names: Collection[str]) -> None:
    """Removes networks that only an earlier result in the same work dir had."""
    for path in folder.glob(f'*{suffix}'):
        if re.fullmatch(r'(front|scaling_stage)_\d+', path.stem) and path.stem not in names:
            path.unlink()


class Ranks:
    """The processes of torch.distributed, for the search; one process is rank 0 of 1.

    They exchange text, on the CPU whatever evaluates, and a rank without work waits long enough
    for the others: the default groups give up after minutes.
    """

    def __init__(self) -> None:
        self.rank, self.world_size = get_dist_info()
        self._group = None
        if self.world_size > 1:
            self._group = distributed.new_group(timeout=_PATIENCE, backend='gloo')

    def gather(self, items: list[str]) -> list[list[str]]:
        """Waits for all ranks; gives each of them every rank's items."""
        if self._group is None:
            return [items]
        data = bytearray(json.dumps(items).encode())
        length = torch.tensor([len(data)])
        lengths = [torch.zeros_like(length) for _ in range(self.world_size)]
        distributed.all_gather(lengths, length, self._group)
        longest = int(max(lengths))
        padded = torch.frombuffer(data.ljust(longest), dtype=torch.uint8)
        parts = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.world_size)]
        distributed.all_gather(parts, padded, self._group)
        return [
            json.loads(part[: int(size)].numpy().tobytes())
            for part, size in zip(parts, lengths, strict=True)
        ]


class ScoringLoop(BaseLoop):
    """Scores networks of a super-supernet for a search, and writes what the search finds.

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
        calibration_dataloader: Config of the loader of training images for BN statistics.
        seed: Seed of the search; by default the runner's.
        resume: Whether to continue the archive in the work dir.
        retry_failed: Whether to evaluate anew what the archive has as failed.
        subnet_evaluator: Further settings of :class:`SubnetEvaluator`, or with ``type`` of
            another: :class:`DetectionEvaluator` for a detector.
        **settings: Settings of the search itself, see :meth:`build_search`.

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
        seed: int | None = None,
        resume: bool = False,
        retry_failed: bool = False,
        subnet_evaluator: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        self._runner = runner
        model = unwrapped_model(runner)
        if not isinstance(model, SuperNetTraining):
            raise TypeError(
                f'{type(self).__name__} needs model.type=mmscale.SuperNetClassifier or '
                f'mmscale.SuperNetDetector, got {type(model).__name__}'
            )
        self.space = model.backbone.space
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
        self.table = CostTable(self.space, behind_stages=model.cost_behind_stages)
        self.history = History(Path(runner.work_dir) / 'history.jsonl')
        self.build_search(**settings)
        self.evaluator: SubnetEvaluator = TASK_UTILS.build(
            {'type': SubnetEvaluator, **(subnet_evaluator or {})},
            default_args=dict(
                model=model, dataloader=dataloader, calibration_dataloader=calibration_dataloader
            ),
        )

    @abstractmethod
    def build_search(self, **settings: Any) -> None:
        """Builds and checks the search, before any data is read."""

    @abstractmethod
    def search(self, scorer: Scorer) -> Result:
        """Runs the search with a scorer."""

    @abstractmethod
    def forecast(self) -> Forecast:
        """What the search is expected to evaluate; to be called before it is run.

        Raises:
            ValueError: No network meets the budgets.
        """

    @staticmethod
    @abstractmethod
    def networks(result: Result) -> dict[str, Arch]:
        """The networks of a result that get files, by name."""

    @staticmethod
    @abstractmethod
    def best(result: Result) -> Fraction:
        """The number that stands for a result in the log."""

    def on_step(self, step: ChainStep | Generation) -> None:
        """Logs a step of the chain, and writes every event to the history."""
        if get_dist_info()[0] == 0:
            self.history.write(step)
        if isinstance(step, ChainStep):
            self._runner.logger.info(describe(step, self.space.resolution))

    def run(self) -> dict[str, float]:
        """Searches and writes the result.

        Returns:
            The best fitness, for the runner's log.
        """
        start = time.monotonic()
        ranks = Ranks()
        fingerprint = self.evaluator.fingerprint
        archive = self._open_archive(fingerprint, ranks.rank)
        seconds = Path(self._runner.work_dir) / 'seconds' / f'rank{ranks.rank:04d}.jsonl'
        on_evaluated = SecondsLog(seconds)
        try:
            progress = ProgressLog(self._runner.logger, ranks.world_size)
            # Of rank 0 alone are the log lines.
            expected = self._expected_evaluations() if ranks.rank == 0 else 0
            scorer = Scorer(archive, self.evaluator, ranks, progress, on_evaluated)
            scorer.expected_evaluations = expected
            result = self.search(scorer)
            if ranks.rank == 0:
                self._write(result, fingerprint, scorer.fresh, time.monotonic() - start)
        finally:
            archive.close()
            on_evaluated.close()
            self.history.close()
        self._runner.logger.info(str(result))
        return {'fitness': float(self.best(result))}

    def _open_archive(self, fingerprint: dict[str, Any], rank: int) -> Archive:
        """Opens the archive and says what is in it."""
        logger = self._runner.logger
        archive = Archive(self.archive_dir, fingerprint, rank)
        for path in archive.cut_off:
            logger.info(f'{path}: its last line was cut off while it was written, and is dropped')
        failed = len(archive.failures)
        if self.retry_failed:
            archive.forget_failures()
        if len(archive):
            logger.info(f'replaying {len(archive)} evaluations of {self.archive_dir}')
        if failed:
            what = 'are evaluated anew' if self.retry_failed else 'count as failed'
            logger.info(f'{failed} of them could not be scored before and {what}')
        return archive

    def _expected_evaluations(self) -> int:
        try:
            return len(self.forecast().candidates)
        except ValueError:
            return 0  # The search itself will say what is wrong.

    def _config_hash(self, fingerprint: dict) -> str:
        """SHA-256 of what the config says of network, data and search, and of the evaluator."""
        config = self._runner.cfg
        search = {key: value for key, value in config.test_cfg.items() if key not in _OTHER_KEYS}
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

    def _write(self, result: Result, fingerprint: dict, evaluated: int, seconds: float) -> None:
        work_dir = Path(self._runner.work_dir)
        (work_dir / 'archs').mkdir(exist_ok=True)
        (work_dir / 'weights').mkdir(exist_ok=True)
        for name, arch in self.networks(result).items():
            write_json(work_dir / 'archs' / f'{name}.json', arch.to_json())
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
                'versions': {
                    'mmscale': __version__,
                    **{name: _version_of(name) for name in _PACKAGES},
                },
            },
        )
        _remove_others(work_dir / 'archs', '.json', self.networks(result))
        _remove_others(work_dir / 'weights', '.pth', self.networks(result))
        timing = work_dir / 'timing.json'
        runs = _runs_in(timing) if self.resume else []
        runs.append(
            {
                'seconds': round(seconds, 1),
                'evaluations': result.evaluations,
                'evaluations_of_rank_0': evaluated,
                'images_of_rank_0': self.evaluator.images_seen,
                'images_saved_of_rank_0': self.evaluator.images_saved,
                'processes': get_dist_info()[1],
                'host': socket.gethostname(),
            }
        )
        write_json(timing, runs)
