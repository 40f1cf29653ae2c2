#!/usr/bin/env python
"""Compares searches of families where the truth is known: stored scores, and analytic problems.

    python benchmarks/families.py [--seeds 30] [--problems drift ...] [--images 1500]
    python benchmarks/families.py --published

A stored problem is a model of the scores that networks of the digit space had in one
super-supernet (benchmarks/super_supernet_scores.py): the mean of gradient boosting and a Gaussian
process, neither of which is what the search's surrogate is made of; its R2 in cross-validation is
printed. The analytic problems hide one base model for all scaling stages, or one that changes
with the scale (mmscale/search/analytic.py). All have the budget and weights of
configs/scalenet/search-mcea_digits.py.

Separate searches every scaling stage for itself, each with a base model of its own: an upper
reference of what a family can be, at an equal number of evaluations (those of its result beside).
Base first searches the base model by scaling stage 0 alone, then scores its scalings, all or as
many as half of the evaluations allow. Every search scores at most the given number of networks.

--published asks how many evaluations MCEA takes in the published space to the optimum of the
analytic score, which is 1.
"""

from __future__ import annotations

import os

os.environ.setdefault('OMP_NUM_THREADS', '1')

import argparse
import csv
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from rich.console import Console
from rich.table import Table

from mmscale.arch import Arch, Scaling, SearchSpace
from mmscale.cost import CostTable
from mmscale.errors import UsageError
from mmscale.quiet import quiet_imports
from mmscale.search import (
    MCEA,
    Archive,
    EvolutionSearch,
    FamilyFitness,
    Feasibility,
    RandomSearch,
    Record,
    Score,
    Searcher,
    SeparateSearch,
)
from mmscale.search.analytic import AnalyticEvaluator
from mmscale.search.surrogate import features

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / 'configs' / 'scalenet'
STORED = 'super_supernet_scores_*.csv'
TOTAL = 1_000_000
# Gene changes of the hidden base model from scaling stage to scaling stage.
DRIFT = 2
EVALUATIONS = (50, 100, 200, 400)
PUBLISHED_EVALUATIONS = 5000
# Blocks of a network stage of the digit space at its largest scaling.
_PLACES = (8, 8, 8, 8)

Evaluate = Callable[[Sequence[Arch]], list[Score]]


def family_of(config: str) -> FamilyFitness:
    """The budgets and weights of a search's config."""
    with quiet_imports():
        settings = Config.fromfile(CONFIGS / config)
    search = settings.test_cfg
    feasibility = Feasibility(
        CostTable(SearchSpace.from_config(settings.space)),
        search.budget,
        tolerance=search.tolerance,
        caps=search.get('caps'),
    )
    return FamilyFitness(feasibility, list(search.weights))


# ------------------------------------------------------------------ what is true


class StoredScores:
    """Scores of all networks of the digit space, as a model has learnt them from some.

    Args:
        path: Table of benchmarks/super_supernet_scores.py.
        space: The digit space.

    Attributes:
        r2: Of the model in cross-validation of five parts.
    """

    def __init__(self, path: Path, space: SearchSpace) -> None:
        from sklearn.ensemble import GradientBoostingRegressor, VotingRegressor
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
        from sklearn.model_selection import KFold, cross_val_predict
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        scored: dict[Arch, float] = {}
        with path.open(encoding='utf-8', newline='') as file:
            for row in csv.DictReader(file):
                genes = np.array([int(digit) for digit in row['genes']])
                scaling = Scaling(*(float(row[k]) for k in ('depth', 'width', 'resolution')))
                arch = space.decode(genes, scaling)
                scored[arch] = int(row['correct']) / int(row['total'])
        inputs = np.array([features(arch, _PLACES) for arch in scored])
        self._varying = inputs.std(axis=0) > 0
        inputs, values = inputs[:, self._varying], np.array(list(scored.values()))
        kernel = ConstantKernel() * RBF(10.0, (1, 1e3)) + WhiteKernel(0.1)
        boosting = GradientBoostingRegressor(
            n_estimators=300, learning_rate=0.05, max_depth=3, subsample=0.5, random_state=0
        )
        process = make_pipeline(
            StandardScaler(), GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
        )
        model = VotingRegressor([('boosting', boosting), ('process', process)])
        parts = KFold(5, shuffle=True, random_state=0)
        left_out = cross_val_predict(model, inputs, values, cv=parts)
        self.r2 = float(1 - np.mean((left_out - values) ** 2) / values.var())
        self.networks = len(values)
        self._model = model.fit(inputs, values)
        self._known: dict[Arch, Score] = {}

    def __call__(self, archs: Sequence[Arch]) -> list[Score]:
        """Scores of some networks."""
        new = [arch for arch in dict.fromkeys(archs) if arch not in self._known]
        if new:
            inputs = np.array([features(arch, _PLACES) for arch in new])[:, self._varying]
            for arch, value in zip(new, self._model.predict(inputs), strict=True):
                self._known[arch] = Score(round(min(max(value, 0), 1) * TOTAL), TOTAL)
        return [self._known[arch] for arch in archs]


def analytic(family: FamilyFitness, drift: int, seed: int) -> Evaluate:
    """The analytic problem of a seed."""
    evaluator = AnalyticEvaluator(family.feasibility, seed, drift=drift)
    return lambda archs: [evaluator.evaluate(arch) for arch in archs]


def noisy(evaluate: Evaluate, images: int, seed: int) -> Evaluate:
    """The scores on so many images: drawn, for each network once, around the true ones."""

    def scores(archs: Sequence[Arch]) -> list[Score]:
        found = []
        for arch, true in zip(archs, evaluate(archs), strict=True):
            rng = np.random.default_rng([seed, int(arch.digest[:15], 16)])
            found.append(Score(int(rng.binomial(images, float(true.value))), images))
        return found

    return scores


# ------------------------------------------------------------------ searches


class Trial:
    """One search: it has an archive of its own, and its networks are counted."""

    def __init__(self, family: FamilyFitness, evaluate: Evaluate, seed: int) -> None:
        self.family = family
        self.evaluate = evaluate
        self.seed = seed
        self.scored: set[Arch] = set()

    def score(self, archs: Sequence[Arch]) -> list[Score]:
        self.scored.update(archs)
        return self.evaluate(archs)

    def run(self, search: Any, is_enough: Callable[[Record], bool] | None = None) -> Any:
        """The result of a search; None if it was ended early, as what it has found is enough."""
        with tempfile.TemporaryDirectory() as folder:
            record = Record(Archive(folder, {'families': self.seed}, durable=False))
            searcher = Searcher(search.steps(record), record)
            while not searcher.finished:
                archs = searcher.ask()
                for arch, score in zip(archs, self.score(archs), strict=True):
                    searcher.tell(arch, score)
                if is_enough is not None and is_enough(record):
                    return None
            return searcher.result

    def family_by(self, search: str, evaluations: int) -> list[Arch]:
        """The networks, by scaling stage, that a search finds."""
        family, seed = self.family, self.seed
        if search.startswith('base first'):
            return self._base_first(evaluations, surrogate='surrogate' in search)
        if search == 'random':
            searcher: Any = RandomSearch(family, evaluations, seed)
        elif search == 'separate':
            searcher = SeparateSearch(family, evaluations=evaluations, seed=seed)
        else:
            has_surrogate = 'without' not in search
            searcher = MCEA(family, evaluations=evaluations, surrogate=has_surrogate, seed=seed)
        result = self.run(searcher)
        return [member.arch for member in result.family]

    def _base_first(self, evaluations: int, surrogate: bool) -> list[Arch]:
        family, rng = self.family, np.random.default_rng([self.seed, 2])
        stages = range(1, len(family.space.scaling_stages))
        # What scalings take of the evaluations is known of base models like the one to be found.
        pool = family.feasibility.draw(rng, 64)
        sizes = [
            sum(int(family.feasibility.admitted(genes[None], j).sum()) for j in stages)
            for genes in pool
        ]
        first = evaluations - min(int(np.median(sizes)), evaluations // 2)
        result = self.run(
            EvolutionSearch(family, None, evaluations=first, surrogate=surrogate, seed=self.seed)
        )
        genes = np.array(result.base.genes, dtype=np.int64)
        found = [family.space.decode(genes)]
        for j in stages:
            archs = [arch for _, arch in family.feasibility.scalings_of(genes, j)]
            # Every scaling stage gets its share of what is left.
            left = (evaluations - len(self.scored)) // (len(family.space.scaling_stages) - j)
            archs = [archs[i] for i in rng.permutation(len(archs))[: max(left, 1)]]
            scores = self.score(archs)
            found.append(archs[max(range(len(archs)), key=lambda i: scores[i].value)])
        return found


SEARCHES = (
    'random',
    'base first',
    'base first, surrogate',
    'MCEA without surrogate',
    'MCEA',
    'separate',
)


def trial(job: tuple[str, str, int, int, int]) -> tuple[float, int]:
    """True fitness of what a search finds, and the networks that it scored."""
    problem, search, evaluations, seed, images = job
    family = family_of('search-mcea_digits.py') if problem not in _FAMILIES else _FAMILIES[problem]
    _FAMILIES[problem] = family
    evaluate = _problem(problem, family, seed)
    one = Trial(family, noisy(evaluate, images, seed) if images else evaluate, seed)
    try:
        archs = one.family_by(search, evaluations)
    except UsageError as error:
        # A base model that cannot be scaled ends a search of the base first.
        if not search.startswith('base first'):
            raise
        print(f'{problem}, {search}, seed {seed}: {error}', file=sys.stderr)
        return float('nan'), len(one.scored)
    true = family.mean([evaluate([archs[j]])[0] for j in family.scored_stages])
    return float(true), len(one.scored)


_FAMILIES: dict[str, FamilyFitness] = {}
_STORED: dict[str, StoredScores] = {}


def _problem(name: str, family: FamilyFitness, seed: int) -> Evaluate:
    if name in _STORED:
        return _STORED[name]
    return analytic(family, DRIFT if name == 'drift' else 0, seed)


# ------------------------------------------------------------------ what is shown


def compared(
    problems: Sequence[str], args: argparse.Namespace, run: Callable[..., Any]
) -> list[dict]:
    """A row per problem, number of evaluations and search."""
    rows = []
    for problem in problems:
        for evaluations in args.evaluations:
            paired: np.ndarray | None = None
            for search in args.searches:
                start = time.perf_counter()
                jobs = [
                    (problem, search, evaluations, seed, args.images) for seed in range(args.seeds)
                ]
                fitness, scored = map(np.array, zip(*run(trial, jobs), strict=True))
                paired = fitness if paired is None else paired
                known = fitness[~np.isnan(fitness)]
                seconds = time.perf_counter() - start
                print(
                    f'{problem}, {evaluations}, {search}: {known.mean():.4f} in {seconds:.0f} s',
                    file=sys.stderr, flush=True,
                )  # fmt: skip
                rows.append(
                    {
                        'problem': problem,
                        'images': args.images,
                        'at_most': evaluations,
                        'search': search,
                        'evaluations': round(float(scored.mean()), 1),
                        'fitness': round(float(known.mean()), 5),
                        'deviation': round(float(known.std(ddof=1)), 5) if len(known) > 1 else 0,
                        'lowest': round(float(known.min()), 5),
                        'beats_random': int((fitness > paired).sum()),
                        'seeds': args.seeds,
                    }
                )
    return rows


def published(seeds: int, run: Callable[..., Any]) -> list[dict]:
    """Per seed the evaluations until the optimum of the published space's analytic problem."""
    rows = []
    for row in run(_to_the_optimum, range(seeds)):
        print(f'published space, {row}', file=sys.stderr, flush=True)
        rows.append(row)
    return rows


def _to_the_optimum(seed: int) -> dict:
    family = family_of('search-mcea_in1k.py')
    start = time.perf_counter()
    one = Trial(family, analytic(family, 0, seed), seed)
    best = Fraction(0)

    def is_enough(record: Record) -> bool:
        nonlocal best
        best = max(best, record.best or best)
        return best == 1

    result = one.run(MCEA(family, evaluations=PUBLISHED_EVALUATIONS, seed=seed), is_enough)
    best = best if result is None else result.fitness
    return {
        'seed': seed,
        'evaluations': len(one.scored),
        'fitness': round(float(best), 5),
        'is_optimum': best == 1,
        'seconds': round(time.perf_counter() - start),
    }


def show(rows: Sequence[dict], title: str) -> None:
    """Prints rows as a table."""
    table = Table(title=title)
    for column in rows[0]:
        is_word = isinstance(rows[0][column], str)
        table.add_column(column.replace('_', ' '), justify='left' if is_word else 'right')
    for row in rows:
        table.add_row(*(f'{v:.4f}' if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=120).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [path.stem.rpartition('_')[2] for path in sorted(stored_files())]
    names += ['one base', 'drift']
    parser.add_argument('--problems', nargs='+', metavar='NAME', help=f'of {", ".join(names)}')
    parser.add_argument('--seeds', type=int, default=30, help='runs of a search (default: 30)')
    parser.add_argument('--evaluations', type=int, nargs='+', default=list(EVALUATIONS))
    parser.add_argument(
        '--searches',
        nargs='+',
        metavar='NAME',
        help=f'of {", ".join(SEARCHES[1:])}',
    )
    parser.add_argument(
        '--images', type=int, default=0, help='scores are of so many images (0: they are exact)'
    )
    parser.add_argument('--published', action='store_true', help='the published space instead')
    parser.add_argument('--processes', type=int, default=1)
    parser.add_argument('--json', action='store_true', help='print a list of objects')
    args = parser.parse_args()
    for name in ('seeds', 'processes'):
        if getattr(args, name) < 1:
            parser.error(f'--{name} {getattr(args, name)} must be 1 or more')
    if min(args.evaluations) < 20 or args.images < 0:
        parser.error('--evaluations must be 20 or more, and --images 0 or more')
    problems = args.problems or names
    args.searches = list(dict.fromkeys([SEARCHES[0], *(args.searches or SEARCHES)]))
    for search in args.searches:
        if search not in SEARCHES:
            parser.error(f'--searches {search!r}: is none of {", ".join(SEARCHES)}')
    for problem in problems:
        if problem not in names:
            parser.error(f'--problems {problem!r}: is none of {", ".join(names)}')
    if not args.published:
        space = family_of('search-mcea_digits.py').space
        for path in stored_files():
            name = path.stem.rpartition('_')[2]
            if name in problems:
                _STORED[name] = StoredScores(path, space)
                print(
                    f'{name}: {_STORED[name].networks} scores, R2 {_STORED[name].r2:.3f} in '
                    f'cross-validation', file=sys.stderr,
                )  # fmt: skip
    # Processes begin as copies of this one, with its models.
    pool = ProcessPoolExecutor(args.processes, get_context('fork')) if args.processes > 1 else None
    run = map if pool is None else pool.map
    rows = published(args.seeds, run) if args.published else compared(problems, args, run)
    if pool is not None:
        pool.shutdown()
    if args.json:
        print(json.dumps(rows, indent=1))
    else:
        show(rows, f'{args.seeds} seeds')
    return 0


def stored_files() -> list[Path]:
    """Tables of stored scores."""
    return sorted((ROOT / 'tests' / 'data').glob(STORED))


if __name__ == '__main__':
    sys.exit(main())
