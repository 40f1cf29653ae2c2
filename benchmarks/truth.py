#!/usr/bin/env python
"""Regret of searches on a public benchmark, whose true accuracies are all known.

    python benchmarks/truth.py [--repeats 300] [--plot regret.png]
    python benchmarks/truth.py --json --table other.csv --space other.py

Regret is the best accuracy of all networks within the budget minus the best that a search has
found, in points of accuracy: its mean over repeats with its standard error, after 50, 100 and 200
distinct networks. The table is NAS-Bench-Macro's by default: 3,969 distinct networks for CIFAR-10
(of its 6,561 rows those that mean one network have equal accuracies), mean accuracy of three
trainings. `ours` is mmscale's default search, `EvolutionSearch(..., evaluations=200)`.

Optuna and pymoo are in requirements/benchmarks.txt; a method whose package is missing is left out.

Another table is a CSV file with an accuracy (mean_acc, acc, test_acc, ...; percent or fraction), a
column `arch` (one symbol or entry per choice) or a column per gene of the space (as depth_0,
kernel_0_1, or in their order; values or their numbers), and costs if it has them.
"""

from __future__ import annotations

import os

os.environ.setdefault('OMP_NUM_THREADS', '1')

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from truth_methods import METHODS, Problem, curve, is_here
from truth_table import Truth, read_truth

from mmscale.errors import UsageError

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / 'tests' / 'data' / 'nas_bench_macro.csv'
SPACE = ROOT / 'configs' / '_base_' / 'search_spaces' / 'nas-bench-macro.py'
EVALUATIONS = (50, 100, 200)
BUDGETS = ('none', 'flops=60e6', 'flops=45e6')
# Shares of the networks of NAS-Bench-Macro that keep to its budgets: of another table by default.
SHARES = (0.56, 0.21)

Budgets = dict[str, dict[str, float]]


def read_budgets(words: Sequence[str]) -> Budgets:
    """Caps by the words that say them, as 'flops=60e6' or 'flops=60e6,params=2e6'."""
    found: Budgets = {}
    for word in words:
        caps: dict[str, float] = {}
        for part in [] if word == 'none' else word.split(','):
            name, _, value = part.partition('=')
            try:
                caps[name] = float(value)
            except ValueError:
                caps[name] = 0
            if not name or not 0 < caps[name] < float('inf'):
                raise UsageError(f'--budgets {word}: must be none or as flops=60e6')
        found[word] = caps
    return found


def usual_budgets(truth: Truth) -> Budgets:
    """No cap, and flops that are as tight as the usual ones of NAS-Bench-Macro."""
    found: Budgets = {'none': {}}
    for share in SHARES:
        cap = float(f'{np.quantile(truth.costs["flops"], share):.2g}')
        if (truth.costs['flops'] <= cap).any():
            found[f'flops={cap:g}'] = {'flops': cap}
    return found


def measured(
    problems: dict[str, Problem], methods: Sequence[str], repeats: int, processes: int
) -> Iterator[dict]:
    """Rows of budget and method, with the regret after every evaluation."""
    most = max(EVALUATIONS)
    # Processes begin as copies of this one, so that the tables need not be sent.
    _PROBLEMS.update(problems)
    pool = ProcessPoolExecutor(processes, get_context('fork')) if processes > 1 else None
    run = map if pool is None else pool.map
    for budget, problem in problems.items():
        for method in methods:
            start = time.perf_counter()
            jobs = [(budget, method, most, seed) for seed in range(repeats)]
            curves = np.array(list(run(_one, jobs)))
            seconds = time.perf_counter() - start
            print(
                f'{budget}, {method}: {repeats} runs in {seconds:.0f} s', file=sys.stderr,
                flush=True,
            )  # fmt: skip
            error = curves.std(axis=0, ddof=1) / repeats**0.5 if repeats > 1 else 0 * curves[0]
            yield {
                'budget': budget,
                'caps': problem.caps,
                'method': method,
                'repeats': repeats,
                'best_accuracy': problem.best,
                'networks': len(problem.allowed),
                'seconds_per_run': round(seconds * max(1, processes) / repeats, 3),
                'regret': curves.mean(axis=0).round(5).tolist(),
                'standard_error': error.round(5).tolist(),
            }
    if pool is not None:
        pool.shutdown()


_PROBLEMS: dict[str, Problem] = {}


def _one(job: tuple[str, str, int, int]) -> np.ndarray:
    budget, method, evaluations, seed = job
    return curve(_PROBLEMS[budget], method, evaluations, seed)


def objects(rows: Sequence[dict]) -> Iterator[dict]:
    """An object per budget, method and number of evaluations."""
    for row in rows:
        for evaluations in EVALUATIONS:
            place = evaluations - 1
            yield {
                **{key: row[key] for key in ('budget', 'method')},
                'evaluations': evaluations,
                'regret': row['regret'][place],
                'standard_error': row['standard_error'][place],
                **{
                    key: row[key]
                    for key in ('repeats', 'caps', 'best_accuracy', 'networks', 'seconds_per_run')
                },
            }


def show(rows: Sequence[dict], title: str) -> None:
    """Prints a table: a line per budget and method."""
    table = Table(title=title)
    for column in ('budget', 'method', *(f'after {n}' for n in EVALUATIONS), 'repeats'):
        table.add_column(column, justify='left' if column in ('budget', 'method') else 'right')
    before = None
    for row in rows:
        if before not in (None, row['budget']):
            table.add_section()
        before = row['budget']
        values = [
            f'{row["regret"][n - 1]:.4f} ± {row["standard_error"][n - 1]:.4f}' for n in EVALUATIONS
        ]
        table.add_row(row['budget'], row['method'], *values, str(row['repeats']))
    Console(width=110).print(table)


def plot(rows: Sequence[dict], path: Path) -> None:
    """Mean regret against evaluations, a panel per budget, with a band of a standard error."""
    import matplotlib

    matplotlib.use('agg')
    from matplotlib import pyplot

    budgets = list(dict.fromkeys(row['budget'] for row in rows))
    width = 3.6 * len(budgets)
    figure, axes = pyplot.subplots(
        1, len(budgets), figsize=(width, 3.4), sharey=True, squeeze=False, layout='constrained'
    )
    names = list(METHODS)
    for axis, budget in zip(axes[0], budgets, strict=True):
        for row in rows:
            if row['budget'] != budget:
                continue
            regret, error = np.array(row['regret']), np.array(row['standard_error'])
            steps, color = np.arange(1, len(regret) + 1), f'C{names.index(row["method"])}'
            # On an axis of powers a regret of 0 would have no place.
            low, middle, high = (
                np.maximum(each, 1e-4) for each in (regret - error, regret, regret + error)
            )
            axis.plot(steps, middle, color=color, label=row['method'])
            axis.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
        axis.set(title=f'budget: {budget}', xlabel='distinct networks', yscale='log')
        axis.set_xlim(0, max(EVALUATIONS))
        axis.grid(alpha=0.3)
    axes[0][0].set(ylabel='regret in points', ylim=(5e-4, 10))
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, ncols=len(labels), loc='outside lower center')
    figure.savefig(path, dpi=120)


def stored(path: Path) -> list[dict]:
    """Rows of an earlier run."""
    try:
        rows = json.loads(path.read_text(encoding='utf-8'))
        most = max(EVALUATIONS)
        return [r for r in rows if r['method'] in METHODS and len(r['regret']) >= most]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f'--also {path}: {error!r:.200}') from error


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--repeats', type=int, default=300, help='runs, seeds 0 to N - 1')
    parser.add_argument('--json', action='store_true', help='print a list of objects')
    parser.add_argument(
        '--methods',
        nargs='*',
        metavar='METHOD',
        help=f'of {", ".join(METHODS)} (default: all; none: what --also has)',
    )
    parser.add_argument('--table', type=Path, help='CSV file; with --space')
    parser.add_argument('--space', type=Path, help='config file with space = dict(...)')
    parser.add_argument('--accuracy', metavar='COLUMN', help='column of the accuracy')
    parser.add_argument(
        '--budgets', nargs='+', metavar='CAPS', help=f'default: {" ".join(BUDGETS)}'
    )
    parser.add_argument('--processes', type=int, default=1)
    parser.add_argument('--plot', type=Path, metavar='FILE', help='image of the regret')
    parser.add_argument('--out', type=Path, metavar='FILE', help='all regrets as JSON')
    parser.add_argument(
        '--also', nargs='+', type=Path, default=[], metavar='FILE',
        help='what --out wrote, shown beside what is run',
    )  # fmt: skip
    args = parser.parse_args()
    for name in ('repeats', 'processes'):
        if getattr(args, name) < 1:
            parser.error(f'--{name} {getattr(args, name)} must be 1 or more')
    if (args.table is None) != (args.space is None):
        parser.error('--table and --space belong together')
    for name in ('plot', 'out'):
        path = getattr(args, name)
        if path is not None and not path.absolute().parent.is_dir():
            parser.error(f'--{name} {path}: there is no folder {path.parent}')
    methods = list(METHODS) if args.methods is None else args.methods
    if not methods and not args.also:
        parser.error(f'--methods: name some of {", ".join(METHODS)}, or rows by --also')
    for method in methods:
        if method not in METHODS:
            parser.error(f'--methods {method}: is none of {", ".join(METHODS)}')
        if not is_here(method):
            print(
                f'LEFT OUT: {method}, as its package is missing '
                f'(pip install -r requirements/benchmarks.txt)',
                file=sys.stderr,
            )
    methods = [method for method in methods if is_here(method)]
    try:
        truth = read_truth(args.table or TABLE, args.space or SPACE, args.accuracy)
        if args.budgets:
            budgets = read_budgets(args.budgets)
        else:
            budgets = usual_budgets(truth) if args.table else read_budgets(BUDGETS)
        problems = {word: Problem(truth, caps) for word, caps in budgets.items()}
        rows = [row for path in args.also for row in stored(path)]
    except UsageError as error:
        parser.error(str(error))
    for note in truth.notes:
        print(f'note: {note}', file=sys.stderr)
    for row in measured(problems, methods, args.repeats, args.processes):
        rows.append(row)
        if args.out is not None:
            # What is measured is kept, whatever ends the rest.
            args.out.write_text(json.dumps(rows) + '\n', encoding='utf-8')
    order = list(METHODS)
    known = list(dict.fromkeys([*budgets, *(row['budget'] for row in rows)]))
    rows.sort(key=lambda row: (known.index(row['budget']), order.index(row['method'])))
    if args.plot is not None:
        plot(rows, args.plot)
    if args.json:
        print(json.dumps(list(objects(rows)), indent=1))
    else:
        name = (args.table or TABLE).stem
        show(rows, f'{name}: mean regret in points ± standard error, by distinct networks')
    return 0


if __name__ == '__main__':
    sys.exit(main())
