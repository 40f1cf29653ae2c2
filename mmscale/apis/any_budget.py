"""Any budget without a new evaluation: answers from a search's archive, by a surrogate."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mmscale.apis.budget_answers import Answer, BudgetAnswer, BudgetAnswers, Ranking
from mmscale.apis.reports.records import kept_digests
from mmscale.apis.reports.run_files import RunFiles, read_settings
from mmscale.apis.scaling.budgets import read_budget
from mmscale.apis.search import plan_search
from mmscale.arch import Arch, SearchSpace
from mmscale.arch.checks import integer
from mmscale.config_parts import type_name
from mmscale.cost import Costs, CostTable, LatencyModel
from mmscale.errors import FOREIGN_ERRORS, UsageError, one_line
from mmscale.search import Archive, Score, Scorer
from mmscale.search.best_predicted import BestPredicted, Predicted
from mmscale.search.distinct import distinct_scalings
from mmscale.search.limits import Limits, read_latency_model
from mmscale.search.reporting import SecondsLog
from mmscale.search.surrogate import FEWEST_SCORES, Surrogate
from mmscale.search.unscale import unscale
from mmscale.untrusted import check_work_dir

if TYPE_CHECKING:
    from mmengine.config import Config

Budgets = str | Mapping[str, float | str]
"""Budgets or caps by metric: ``dict(flops=0.5e6)``, or as ``flops=0.5M,params=50K``."""

# A surrogate of more scores takes seconds to fit and is hardly better.
_MOST_SCORES = 1000
# So many are left out of fits, a part at a time, to see how well they are predicted.
_MOST_LEFT_OUT = 500
_FOLDS = 4
# Networks of like cost deviate by so much from the first budget at most.
_LIKE = 0.4
_ARCHIVED = 3
_STARTS = 12


def read_limits(owner: str, value: Budgets) -> dict[str, float]:
    """Budgets or caps as users write them.

    Args:
        owner: ``budget`` or ``cap``, for messages.
        value: As ``flops=0.5e6,params=50K``, or by metric.

    Raises:
        UsageError: It is malformed.

    Example:
        >>> read_limits('budget', 'flops=0.5M,params=50e3')
        {'flops': 500000.0, 'params': 50000.0}
    """
    if isinstance(value, str):
        parts = [read_budget(part) for part in value.split(',')]
    elif isinstance(value, Mapping):
        parts = [read_budget({metric: one}) for metric, one in value.items()]
    else:
        raise UsageError(f'{owner}={value!r:.60} must be a text as flops=0.5e6, or a dict')
    found: dict[str, float] = {}
    for part in parts:
        if part.is_multiple or part.metric in found:
            what = 'a multiple: of which network' if part.is_multiple else 'given twice'
            raise UsageError(f'{owner}={value!r:.60}: {part.metric} is {what}')
        found[part.metric] = part.value
    return found


@dataclass(frozen=True)
class _Archived:
    """What an archive has of a space.

    Attributes:
        table: Costs of the space.
        archs: Scored networks.
        scores: Their scores.
        costs: Their costs, each of shape (n,).
        left_out: Their scores as predicted without them, or NaN, shape (n,).
        number: Scores in the archive.
        surrogate: Fitted to all of them.
    """

    table: CostTable
    archs: list[Arch]
    scores: list[Score]
    costs: Costs
    left_out: NDArray[np.float64]
    number: int
    surrogate: Surrogate

    @property
    def values(self) -> NDArray[np.float64]:
        """The scores as numbers, shape (n,)."""
        return np.array([float(score.value) for score in self.scores])


def _space_table(run: RunFiles, config: Config | None) -> CostTable:
    """Costs of the space that was searched: as the user's config says, or the dumped one."""
    if config is not None:
        return plan_search(config).table
    model = run.config.get('model')
    if isinstance(model, dict) and type_name(model) == 'SuperNetDetector':
        raise UsageError(
            f'{run.work_dir}: costs of a detector are those of its neck and head too: give the '
            f'config of the search, as in tools/search.py CONFIG --from-archive {run.work_dir}'
        )
    if run.space is None:
        missing = f' ({"; ".join(run.missing):.200})' if run.missing else ''
        raise UsageError(
            f'{run.work_dir}: no config of a search with model.backbone.space{missing}'
        )
    try:
        return CostTable(SearchSpace.from_config(run.space))
    except FOREIGN_ERRORS as error:
        raise UsageError(f'{run.work_dir}: space of the config: {one_line(error):.300}') from error


def _read(work_dir: Path, config: Config | None, seed: int) -> _Archived:
    if not work_dir.is_dir():
        raise UsageError(f'{work_dir} is not a folder; it must be the work dir of a search')
    check_work_dir(work_dir)
    table = _space_table(read_settings(work_dir), config)
    archive = Archive.open_existing(work_dir / 'archive')
    number = len(archive) - len(archive.failures)
    if number < FEWEST_SCORES:
        raise UsageError(
            f'{work_dir}: the archive has {number} scores, and a surrogate needs {FEWEST_SCORES} '
            f'or more: let the search run on'
        )
    entries = list(archive.records(kept_digests(archive, number, _MOST_SCORES)))
    archs = [Arch.from_json(entry['arch']) for entry in entries]
    scores = [Score(**entry['score']) for entry in entries]
    space = table.space
    stages = range(len(space.scaling_stages))
    scalings = [scaling for j in stages for scaling in distinct_scalings(space, j)]
    is_alike = {len(arch.stages) for arch in archs} == {len(space.stages)}
    if not is_alike or all(unscale(space, arch, scalings) is None for arch in archs[:_STARTS]):
        raise UsageError(f'{work_dir}: the archive has networks that are not of the space')
    costs = [table.cost(arch) for arch in archs]
    columns = (np.array([getattr(cost, key) for cost in costs]) for key in Costs._fields)
    return _Archived(
        table, archs, scores, Costs(*columns), _left_out(archs, scores, seed), number,
        Surrogate(archs, scores, seed),
    )  # fmt: skip


def _left_out(archs: Sequence[Arch], scores: Sequence[Score], seed: int) -> NDArray[np.float64]:
    """Scores as predicted by surrogates fitted without them, NaN for others, shape (n,)."""
    order = np.random.default_rng(seed).permutation(len(archs))[:_MOST_LEFT_OUT]
    found = np.full(len(archs), np.nan)
    for part in np.array_split(order, _FOLDS):
        others = np.setdiff1d(order, part)
        if len(others) < FEWEST_SCORES:
            continue
        fitted = Surrogate([archs[i] for i in others], [scores[i] for i in others], seed)
        found[part] = fitted.predict([archs[i] for i in part])[0]
    return found


def _ranking(archived: _Archived, mask: NDArray[np.bool_]) -> Ranking:
    mask = mask & np.isfinite(archived.left_out)
    return Ranking.of(archived.left_out[mask], archived.values[mask])


def _answer(archived: _Archived, limits: Limits, number: int, seed: int) -> BudgetAnswer:
    """Answers one budget."""
    excess = limits.excess(archived.costs, 0)
    order = np.lexsort((-archived.values, excess))
    search = BestPredicted(limits, archived.surrogate.predict, seed)
    scalings = [scaling for _, scaling in search.options]
    starts = [unscale(archived.table.space, archived.archs[i], scalings) for i in order[:_STARTS]]
    found = search.run(number, [start for start in starts if start is not None])
    known = {
        arch.digest: score for arch, score in zip(archived.archs, archived.scores, strict=True)
    }

    def network(arch: Arch, predicted: Predicted | None) -> Answer:
        cost = archived.table.cost(arch)
        model = limits.latency_model
        latency = None if model is None else float(model.predict(cost))
        return Answer(arch, cost, latency, predicted, known.get(arch.digest))

    is_met = bool((excess == 0).any())
    shown_too = order[: min(_ARCHIVED, (excess == 0).sum() if is_met else _ARCHIVED)]
    like = np.ones(len(excess), dtype=bool)
    if limits.budgets:
        like = np.abs(limits.of(0)[0].deviations(archived.costs)) <= _LIKE
    return BudgetAnswer(
        dict(limits.budgets),
        tuple(network(one.arch, one) for one in found),
        tuple(network(archived.archs[i], None) for i in shown_too),
        is_met,
        _ranking(archived, like),
    )


def answer_budgets(
    work_dir: str | Path,
    budgets: Budgets | Sequence[Budgets] = (),
    caps: Budgets | None = None,
    tolerance: float = 0.05,
    latency_model: LatencyModel | str | Path | None = None,
    number: int = 5,
    config: Config | None = None,
    seed: int = 0,
) -> BudgetAnswers:
    """Answers budgets that no search was run for, from what a search has archived.

    A surrogate is fitted to the scores in the archive; the best predicted networks within a budget
    are looked for among all base models and scalings of the space, with exact costs. Nothing is
    evaluated, and nothing of the work dir is changed or executed; the search may be running.

    Args:
        work_dir: Work dir of the search.
        budgets: Each answered by itself: ``dict(flops=0.5e6)`` or ``'flops=0.5M'``, with several
            metrics where all are to be met at once. It may be empty where there are caps.
        caps: What no network may exceed, by metric: ``dict(latency=3.5)`` in milliseconds.
        tolerance: Largest relative deviation from a budget.
        latency_model: Predicts latencies, or the JSON file of such a model.
        number: Networks per budget.
        config: Config of the search; needed for a detector, else the dumped one is read as data.
        seed: Seed of the surrogate and of the search on it.

    Raises:
        UsageError: A setting is not allowed, a budget is out of reach, or the archive has too few
            scores.

    Example:
        >>> answers = answer_budgets('work_dirs/search-mcea_digits', 'flops=1M')  # doctest: +SKIP
        >>> answers.answers[0].networks[0].predicted.mean  # doctest: +SKIP
        0.71
    """
    if not isinstance(work_dir, (str, Path)):
        raise UsageError(f'work_dir={work_dir!r:.60} must be the work dir of a search')
    integer('number', number, 1, 1000)
    integer('seed', seed, 0)
    if not isinstance(budgets, (list, tuple)):
        budgets = [budgets]
    questions = [read_limits('budget', budget) for budget in budgets]
    own_caps = {} if caps is None else read_limits('cap', caps)
    if not questions and not own_caps:
        raise UsageError('budget is not set: name one, as in flops=0.5e6 (--budget flops=0.5e6)')
    model = read_latency_model(latency_model)
    work_dir = Path(work_dir)
    archived = _read(work_dir, config, seed)
    table = archived.table
    limits = [
        Limits(table, question or None, own_caps or None, tolerance, model, grows=False)
        for question in questions or [{}]
    ]
    stages = range(len(table.space.scaling_stages))
    scalings = [scaling for j in stages for scaling in distinct_scalings(table.space, j)]
    for one in limits:
        for limit in one.of(0):
            one.check_reach(limit, 0, scalings, 'network')
    return BudgetAnswers(
        work_dir, len(archived.scores), archived.number, own_caps, tolerance,
        _ranking(archived, np.ones(len(archived.scores), dtype=bool)),
        tuple(_answer(archived, one, number, seed) for one in limits),
    )  # fmt: skip


# ---------------------------------------------------------------------- verification


def verify(answers: BudgetAnswers, config: Config, number: int) -> BudgetAnswers:
    """Scores the best networks of every answer with the super-supernet of a config.

    They are scored as the search scored its own, and appended to its archive.

    Args:
        answers: The answers.
        config: Config of the search, with ``load_from``.
        number: Networks per answer.

    Returns:
        The answers, with these scores and how well they were predicted.

    Raises:
        UsageError: The config names no super-supernet, or the archive is of another one or of
            other settings.
    """
    from mmscale.launch.runner import build_runner

    integer('verify', number, 1)
    if not config.get('load_from'):
        raise UsageError(
            'load_from is not set: name the checkpoint of the super-supernet that the search '
            'scored with, as load_from (--cfg-options load_from=PATH)'
        )
    wanted = [network for one in answers.answers for network in one.networks[:number]]
    archs = [network.arch for network in wanted]
    # The work dir keeps its config and logs as the search left them.
    with tempfile.TemporaryDirectory() as temporary, redirect_stdout(StringIO()):
        config = config.copy()
        config.work_dir, config.log_level = temporary, 'ERROR'
        runner = build_runner(config, 'test')
        runner.load_or_resume()
        evaluator = runner.test_loop.evaluator
        seconds = SecondsLog(answers.work_dir / 'seconds' / 'rank0000.jsonl')
        with Archive(answers.work_dir / 'archive', evaluator.fingerprint) as archive:
            try:
                Scorer(archive, evaluator, on_evaluated=seconds).score(archs)
            finally:
                seconds.close()
            scores = {arch.digest: archive.score(arch) for arch in archs}
    scored = [network for network in wanted if scores[network.arch.digest] is not None]
    measured = [float(scores[network.arch.digest].value) for network in scored]
    predicted = [network.predicted.mean for network in scored]

    def with_scores(one: BudgetAnswer) -> BudgetAnswer:
        networks = (replace(n, score=scores.get(n.arch.digest, n.score)) for n in one.networks)
        return replace(one, networks=tuple(networks))

    return replace(
        answers,
        answers=tuple(map(with_scores, answers.answers)),
        verified=Ranking.of(np.array(predicted), np.array(measured)),
    )
