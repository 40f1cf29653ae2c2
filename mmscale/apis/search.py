"""A search by its config, without a super-supernet: its profile, and a dry run of it."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmscale.apis.reports.errors import fitness_facts
from mmscale.arch import Arch, Scaling, SearchSpace
from mmscale.arch.checks import integer
from mmscale.arch.origin import Origin, origin_of
from mmscale.config_parts import type_name
from mmscale.cost import CostTable
from mmscale.errors import UsageError, one_line
from mmscale.files import write_json, write_text
from mmscale.launch.config_text import settings_text
from mmscale.quiet import quiet_imports
from mmscale.search import (
    Archive,
    ChainStep,
    EvolutionSearch,
    Generation,
    GivenFamily,
    OnStep,
    RandomSearch,
    Result,
    ScalingSearch,
    Score,
    Scorer,
    Search,
    SearchResult,
)
from mmscale.search.analytic import AnalyticEvaluator
from mmscale.search.forecast import analytic_evaluator
from mmscale.search.noise import with_error
from mmscale.search.profile import SearchProfile, profile_search
from mmscale.search.reporting import History, ProgressLog, describe
from mmscale.search.result_files import read_result
from mmscale.shown import visible
from mmscale.tables import Printed, make_table
from mmscale.untrusted import check_work_dir
from mmscale.version import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mmengine.config import Config
    from rich.table import Table

    from mmscale.models import SuperNetDetector


def check_search(config: Config) -> None:
    """Checks that a config has a search.

    Raises:
        UsageError: It has none.
    """
    settings = config.get('test_cfg')
    if not isinstance(settings, dict) or 'Loop' not in type_name(settings):
        raise UsageError(
            f'config={config.filename} has no search: test_cfg.type must be mmscale.SearchLoop'
        )


@dataclass
class PlannedSearch:
    """The search of a config, built and checked; no data or checkpoint is needed for it.

    Attributes:
        search: The search.
        table: Costs of the networks in its space.
        seed: Its seed.
    """

    search: Search
    table: CostTable
    seed: int


def _detector(config: Config) -> SuperNetDetector:
    """The detector of a config, which costs what its neck and head do too."""
    from mmengine.registry import DefaultScope

    from mmscale.registry import MODELS

    # Parts of it are built later too, where a network is costed.
    scope = config.get('default_scope', 'mmdet')
    DefaultScope.get_instance(f'{scope}-{time.time_ns()}', scope_name=scope)
    with quiet_imports():
        import mmscale.models  # noqa: F401

        return MODELS.build(config.model)


def plan_search(config: Config) -> PlannedSearch:
    """Builds the search of a config.

    Args:
        config: The config of a search.

    Raises:
        UsageError: The config has no search, or a setting is unknown or not allowed.
    """
    check_search(config)
    with quiet_imports():
        from mmscale.engine.search_loop import LOOP_KEYS, SearchLoop, build_search
        from mmscale.engine.space_settings import check_settings
        from mmscale.registry import LOOPS
    settings = dict(config.test_cfg)
    name = settings.pop('type')
    loop = LOOPS.get(name) if isinstance(name, str) else name
    if not isinstance(loop, type) or not issubclass(loop, SearchLoop):
        raise UsageError(f'test_cfg.type={name} is not a search loop of mmscale')
    check_settings(config)
    settings = loop.nested(settings)
    seed = settings.get('seed')
    if seed is None:
        seed = (config.get('randomness') or {}).get('seed') or 0
    settings = {key: value for key, value in settings.items() if key not in LOOP_KEYS}
    model = config.get('model')
    is_detector = isinstance(model, dict) and type_name(model) == 'SuperNetDetector'
    keys = ('detector', 'backbone', 'space') if is_detector else ('backbone', 'space')
    space = model
    for key in keys:
        space = space.get(key) if isinstance(space, dict) else None
    if not isinstance(space, dict):
        name = '.'.join(('model', *keys))
        raise UsageError(f'config={config.filename} has no dict {name} to search in')
    try:
        integer('seed', seed, 0)
        after = _detector(config).cost_after_stages if is_detector else None
        table = CostTable(SearchSpace.from_config(space), after_stages=after)
        search = build_search(table, seed, **settings)
    except TypeError as error:  # of keys that are missing or unknown
        raise UsageError(
            f'model.backbone.space or test_cfg.search: {one_line(error):.400}'
        ) from error
    except (OSError, ValueError) as error:
        raise UsageError(one_line(error)) from error
    return PlannedSearch(search, table, seed)


# ---------------------------------------------------------------------- profile


def profile(config: Config) -> SearchProfile:
    """Profiles the search of a config; nothing is evaluated or written.

    Raises:
        UsageError: The config has no search, or a setting is unknown or not allowed.
    """
    planned = plan_search(config)
    search = planned.search
    return profile_search(planned.table, search.family, search.most_evaluations, planned.seed)


# ---------------------------------------------------------------------- dry run


@dataclass(frozen=True, repr=False)
class DryRun(Printed):
    """What a search reached on the analytic score, whose optimum is 1; prints its table.

    Attributes:
        result: Outcome of the search.
        seconds: Its time.
        random: Outcome of random search at as many evaluations; None where it is no match,
            because the search is random itself or is given a part of the family.
        random_seconds: Its time.
    """

    result: SearchResult
    seconds: float
    random: SearchResult | None = None
    random_seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Returns the outcome as plain JSON data."""
        runs = {
            'search': (self.result, self.seconds),
            'random': (self.random, self.random_seconds),
        }
        return {
            'optimum': 1.0,
            **{
                name: {
                    'fitness': float(result.fitness),
                    'evaluations': result.evaluations,
                    'seconds': round(seconds, 1),
                }
                for name, (result, seconds) in runs.items()
                if result is not None
            },
        }

    def renderables(self) -> list[Table]:
        """The search, random search and the optimum."""
        data = self.to_json()
        rows = [
            (
                name,
                f'{run["fitness"]:.4f}',
                f'{run["fitness"] / data["optimum"]:.1%}',
                f'{run["evaluations"]:,}',
                run['seconds'],
            )
            for name, run in data.items()
            if name != 'optimum'
        ]
        rows.append(('optimum', f'{data["optimum"]:.4f}', '100.0%', None, None))
        columns = ('', 'fitness', 'of the optimum', 'evaluations', 'seconds')
        return [make_table('dry run', columns, rows)]


def _hidden(planned: PlannedSearch) -> AnalyticEvaluator:
    """The analytic score for a search; what the search is given is a part of its optimum."""
    search = planned.search
    if search.family is None or isinstance(search, GivenFamily):
        raise UsageError(
            f'dry run: {type(search).__name__} has no known optimum; only searches within '
            f'a budget can be run dry'
        )
    return analytic_evaluator(search, planned.seed)


@contextmanager
def _logger(work_dir: Path) -> Iterator[logging.Logger]:
    """A logger to stdout and to ``dry_run.log``."""
    logger = logging.getLogger('mmscale.dry_run')
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handlers = [
        logging.StreamHandler(sys.stdout),
        logging.FileHandler(work_dir / 'dry_run.log', encoding='utf-8'),
    ]
    for handler in handlers:
        handler.setFormatter(logging.Formatter('%(asctime)s - %(levelname)s - %(message)s'))
        logger.addHandler(handler)
    try:
        yield logger
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()


def _run(
    search: Search,
    evaluator: AnalyticEvaluator,
    directory: Path,
    logger: logging.Logger,
    on_step: OnStep | None = None,
) -> tuple[SearchResult, float]:
    """Runs a search on an archive of its own; also returns its seconds."""
    start = time.monotonic()
    # A score costs less than waiting for the disk, and is the same when it is computed again.
    with Archive(directory, evaluator.fingerprint, durable=False) as archive:
        if len(archive):
            logger.info(f'replaying {len(archive)} evaluations of {visible(directory)}')
        scorer = Scorer(archive, evaluator, progress=ProgressLog(logger))
        # The analytic score counts no images.
        result = replace(search.run(scorer, on_step), counted=False)
        return result, time.monotonic() - start


def write_result(path: Path, result: Result, convention: str, origin: Origin) -> None:
    """Writes ``result.json``, with where it is from."""
    about = {'origin': origin.to_json(), 'versions': {'mmscale': __version__}}
    write_json(path, {**result.to_json(), 'convention': convention, **about})


def dry_run(config: Config, resume: bool = False) -> DryRun:
    """Runs the search of a config with the analytic score, and random search beside it.

    No model is built and no image is read. The work dir gets what a search leaves there, except
    for weights and times: the dumped config, ``archive/``, ``history.jsonl``, ``result.json``,
    ``archs/``; and of the random search ``random/archive/`` and ``random/result.json``; and
    ``dry_run.log``.

    Args:
        config: The config of a search; its work_dir is written to.
        resume: Whether to continue the archives in the work dir.

    Raises:
        UsageError: The config has no search for a family, a setting is not allowed, or the work
            dir holds the archive of another search.
    """
    planned = plan_search(config)
    work_dir = Path(config.work_dir)
    check_work_dir(work_dir)
    archives = (work_dir / 'archive', work_dir / 'random' / 'archive')
    if not resume and any(any(archive.glob('*.jsonl')) for archive in archives):
        raise UsageError(
            f'work_dir={work_dir} holds the archive of an earlier search: continue it with '
            f'resume (--resume), or take another work dir'
        )
    try:
        evaluator = _hidden(planned)
        for name in ('archs', 'random'):
            (work_dir / name).mkdir(parents=True, exist_ok=True)
        # A report on the way reads from it what the costs of the history are.
        name = Path(config.filename or 'config.py').name
        write_text(work_dir / name, settings_text(config.to_dict()))
        with _logger(work_dir) as logger:
            return _dry_run(planned, evaluator, work_dir, logger, origin_of(config))
    except (OSError, ValueError) as error:
        raise UsageError(one_line(error)) from error


def _dry_run(
    planned: PlannedSearch,
    evaluator: AnalyticEvaluator,
    work_dir: Path,
    logger: logging.Logger,
    origin: Origin,
) -> DryRun:
    search, table = planned.search, planned.table
    history = History(work_dir / 'history.jsonl')

    def on_step(step: ChainStep | Generation) -> None:
        history.write(step)
        line = describe(step, table.space.resolution)
        if line is not None:
            logger.info(line)

    logger.info(f'dry run of {type(search).__name__}: analytic score, its optimum is 1')
    logger.info(f'{table.space}')
    try:
        result, seconds = _run(search, evaluator, work_dir / 'archive', logger, on_step)
    finally:
        history.close()
    for name, arch in result.networks.items():
        arch.save(work_dir / 'archs' / f'{name}.json', origin)
    write_result(work_dir / 'result.json', result, table.convention, origin)
    logger.info(str(result))
    outcome = DryRun(result, seconds)
    if not isinstance(search, (EvolutionSearch, ScalingSearch, RandomSearch)):
        logger.info(f'random search at {result.evaluations} evaluations')
        search = RandomSearch(search.family, result.evaluations, planned.seed)
        directory = work_dir / 'random'
        random, random_seconds = _run(search, evaluator, directory / 'archive', logger)
        write_result(directory / 'result.json', random, table.convention, origin)
        outcome = DryRun(result, seconds, random, random_seconds)
    logger.info(f'dry run: {json.dumps(outcome.to_json())}')
    return outcome


# ---------------------------------------------------------------------- from Python


def run_search(
    config: str | Path | Config,
    work_dir: str | Path | None = None,
    load_from: str | Path | None = None,
    resume: bool = False,
    options: Sequence[str] = (),
) -> SavedResult:
    """Searches in a trained super-supernet, as ``tools/search.py`` does in one process.

    Args:
        config: Config of the search: its file or its content.
        work_dir: Folder of logs and results; by default ``work_dirs/<config name>``.
        load_from: Checkpoint of the super-supernet, in the place of the config's.
        resume: Whether to continue the search in the work dir.
        options: Overrides of the config, ``KEY=VALUE`` each.

    Returns:
        What :func:`load_result` reads from the work dir.

    Raises:
        UsageError: The config is of no search, a setting is not allowed, or the work dir holds
            another search.

    Example:
        >>> result = run_search('configs/scalenet/search-mcea_digits.py')  # doctest: +SKIP
        >>> result.archs['scaling_stage_1'].resolution  # doctest: +SKIP
        30
    """
    from mmscale.launch.command_line import read_config
    from mmscale.launch.runner import set_environment

    set_environment()
    config = read_config(config, options, work_dir)
    check_search(config)
    if load_from is not None:
        config.load_from = str(load_from)
    search_with(config, resume)
    return load_result(config.work_dir)


def search_with(config: Config, resume: bool = False, retry_failed: bool = False) -> None:
    """Runs the search of a config that was checked.

    Raises:
        UsageError: It names no super-supernet, or archive, budgets, schedule or disk are at
            fault: nothing that was evaluated is lost.
    """
    from mmscale.launch.log import run
    from mmscale.launch.runner import build_runner

    if not config.get('load_from'):
        raise UsageError(
            'load_from is not set: name the checkpoint of a trained super-supernet, as load_from '
            '(--cfg-options load_from=PATH)'
        )
    config.test_cfg.resume = resume
    config.test_cfg.retry_failed = retry_failed
    run(build_runner(config, 'test'), 'test')


class SavedResult(Printed):
    """The outcome of a search as its work dir has it; prints its table.

    Attributes:
        path: Of ``result.json``.
        data: Its content.
        archs: The networks by the names of their files: ``scaling_stage_0`` ... of a family, or
            ``front_0`` ... of a front.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = read_result(path, ('cost', 'score', 'arch'))
        is_front = self.data.get('kind') == 'pareto'
        self._members = self.data['front' if is_front else 'scaling_stages']
        name = 'front' if is_front else 'scaling_stage'
        self.archs = {
            f'{name}_{i}': Arch.from_json(member['arch']) for i, member in enumerate(self._members)
        }

    @property
    def fitness(self) -> float | None:
        """Weighted mean of the family's scores; None of a front."""
        return self.data.get('fitness')

    @property
    def strategy(self) -> tuple[Scaling, ...]:
        """One Scaling per scaling stage; of a front those of its networks."""
        return tuple(Scaling(**m['scaling']) for m in self._members if 'scaling' in m)

    def weights(self, name: str) -> Path:
        """The checkpoint with the weights that a network was scored with."""
        return self.path.parent / 'weights' / f'{name}.pth'

    def plot(self) -> dict[str, Figure]:
        """Matplotlib's figures of the search, by name; see :func:`mmscale.report`."""
        from mmscale.apis.reports.report import report

        return report(self.path.parent).pictures

    def renderables(self) -> list[Table | str]:
        """A row per network, and the fitness."""
        rows = []
        for (name, arch), member in zip(self.archs.items(), self._members, strict=True):
            cost, score = member['cost'], member['score']
            right = score and self._percent(Score(**score))
            numbers = (f'{cost[key]:,}' for key in ('flops', 'params', 'acts'))
            rows.append((name, arch.resolution, len(arch.blocks), *numbers, right))
        what = 'percent ± 1.96 standard errors' if self.data.get('counted', True) else 'percent'
        columns = ('network', 'px', 'blocks', 'flops', 'params', 'acts', f'score, {what}')
        title = f'{self.path.parent.name}: {self.data.get("evaluations", 0):,} evaluations'
        told = [f'{what} {value}' for what, value in fitness_facts(self.data)]
        return [make_table(title, columns, rows), *told]

    def _percent(self, score: Score) -> str:
        error = 100 * score.error if self.data.get('counted', True) else None
        return with_error(100 * score.value, error, 1)


def load_result(folder: str | Path) -> SavedResult:
    """Reads what a search found.

    Args:
        folder: Its work dir, or the ``result.json`` there.

    Raises:
        UsageError: There is no result, or it is damaged.

    Example:
        >>> result = load_result('work_dirs/search-mcea_digits')  # doctest: +SKIP
        >>> print(result)  # doctest: +SKIP
    """
    if not isinstance(folder, (str, Path)):
        raise UsageError(f'folder={folder!r:.60} must be the work dir of a search')
    path = Path(folder)
    path = path / 'result.json' if path.is_dir() else path
    if not path.is_file():
        raise UsageError(f'{path} is not a file; it must be the result.json of a finished search')
    return SavedResult(path)
