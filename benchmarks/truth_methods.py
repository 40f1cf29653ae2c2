"""Searches of a network in a table: ours, baselines, and what users would otherwise take.

All count alike: what is asked for the first time is an evaluation, and is scored with its true
accuracy; what was asked for before is answered again and costs nothing, and so does a proposal
that misses the budget. None sees more than its own answers.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from truth_table import Truth

from mmscale.arch.genes import Genes
from mmscale.cost import CostTable
from mmscale.errors import UsageError
from mmscale.search import (
    Archive,
    EvolutionSearch,
    FamilyFitness,
    Feasibility,
    Record,
    Score,
    Searcher,
    Strategy,
)
from mmscale.search.operators import randomise_dead

TOTAL = 1_000_000
# Proposals in a row without a new network, after which a method is given a random one.
_FRUITLESS = 20
# What a network that has no row misses its budget by.
_MISSING = 1.0
# Aging evolution: survivors, and how many of them compete for being a parent.
AGING = (20, 5)
# Mutations of a parent that may be known or miss the budget.
_MUTATIONS = 50
GA_POPULATION = 20


@dataclass
class Problem:
    """A table under caps.

    Attributes:
        truth: The table.
        caps: By name of a cost, what no network may exceed.
    """

    truth: Truth
    caps: Mapping[str, float]

    def __post_init__(self) -> None:
        for name in self.caps:
            if name not in self.truth.costs:
                raise UsageError(
                    f'budget {name}: the costs of this table are {", ".join(self.truth.costs)}'
                )
        if not len(self.allowed):
            lows = {name: self.truth.costs[name].min() for name in self.caps}
            raise UsageError(
                'no network keeps to '
                + ', '.join(
                    f'{name}={cap:g} (the lowest is {lows[name]:g})'
                    for name, cap in self.caps.items()
                )
            )

    @cached_property
    def excess(self) -> np.ndarray:
        """Relative excess over the caps of every network, summed; 0 within them, shape (n,)."""
        found = np.zeros(len(self.truth.genes))
        for name, cap in self.caps.items():
            found += np.maximum(self.truth.costs[name] / cap - 1, 0)
        return found

    @cached_property
    def allowed(self) -> np.ndarray:
        """Rows of the networks within the caps."""
        return np.flatnonzero(self.excess == 0)

    @cached_property
    def best(self) -> float:
        """The highest accuracy within the caps, in percent."""
        return float(self.truth.accuracies[self.allowed].max())

    @cached_property
    def rows(self) -> dict[bytes, int]:
        """Rows of the networks by their genotypes."""
        return {genes.tobytes(): i for i, genes in enumerate(self.truth.genes)}

    @cached_property
    def feasibility(self) -> Feasibility:
        """The caps for our search: its own where it counts the networks and costs of the table."""
        table = CostTable(self.truth.space)
        if self.truth.is_complete and set(self.caps) <= self.truth.counted:
            return Feasibility(table, None, caps=dict(self.caps) or None)
        return _OfTable(table, self)


class _OfTable(Feasibility):
    """Allows the networks of a table that keep to caps on the table's costs."""

    def __init__(self, table: CostTable, problem: Problem) -> None:
        super().__init__(table, None)
        self._problem = problem

    def _excess(self, genes: Genes, strategy: Strategy) -> np.ndarray:
        rows, excess = self._problem.rows, self._problem.excess
        found = (rows.get(row.tobytes()) for row in self.space.canonicalise(genes))
        return np.array([_MISSING if row is None else excess[row] for row in found])

    def draw(
        self,
        rng: np.random.Generator,
        limit: int,
        strategy: Strategy = (),
        seen: set[bytes] | None = None,
    ) -> Genes:
        """Random rows: a table may hold so few networks of its space that samples find none."""
        seen = set() if seen is None else seen
        taken = []
        for genes in self._problem.truth.genes[rng.permutation(self._problem.allowed)]:
            if len(taken) == limit:
                break
            if genes.tobytes() not in seen:
                seen.add(genes.tobytes())
                taken.append(genes)
        return np.array(taken, dtype=np.int64).reshape(-1, self.space.num_genes)


class Run:
    """Counts what one run of a method asks for.

    Attributes:
        found: Accuracies of the networks in the order of their first asking.
    """

    def __init__(self, problem: Problem, evaluations: int, seed: int) -> None:
        self.problem = problem
        self.rng = np.random.default_rng([seed, 1])
        self.evaluations = min(evaluations, len(problem.allowed))
        self.seed = seed
        self.found: list[float] = []
        self._asked: set[int] = set()
        self._fruitless = 0

    @property
    def is_over(self) -> bool:
        return len(self.found) >= self.evaluations

    def is_new(self, genes: Genes) -> bool:
        """Whether a canonical genotype is allowed and was not asked for."""
        row = self.problem.rows.get(genes.tobytes())
        return row is not None and not self.problem.excess[row] and row not in self._asked

    def ask(self, genes: Genes) -> tuple[float, float]:
        """Accuracy, and excess over the caps; of one that exceeds them no accuracy, but 0.

        Args:
            genes: Canonical, shape (genes,).
        """
        row = self.problem.rows.get(genes.tobytes())
        self._fruitless += 1
        if row is None:
            return 0.0, _MISSING
        if self.problem.excess[row]:
            return 0.0, float(self.problem.excess[row])
        accuracy = float(self.problem.truth.accuracies[row])
        if row not in self._asked:
            self._fruitless = 0
            self._asked.add(row)
            if not self.is_over:
                self.found.append(accuracy)
        return accuracy, 0.0

    @property
    def is_stuck(self) -> bool:
        """Whether nothing new was proposed for long."""
        return self._fruitless >= _FRUITLESS

    def random(self) -> Genes:
        """A random network that was not asked for."""
        left = [row for row in self.problem.allowed if row not in self._asked]
        return self.problem.truth.genes[self.rng.choice(left)]


# ------------------------------------------------------------------ methods


def ours(run: Run) -> None:
    """The default search, through ask and tell."""
    problem = run.problem
    family = FamilyFitness(problem.feasibility)
    search = EvolutionSearch(family, evaluations=run.evaluations, seed=run.seed)
    space, asked = problem.truth.space, set()
    with tempfile.TemporaryDirectory() as folder:
        record = Record(Archive(folder, {'table': 'truth'}, durable=False))
        searcher = Searcher(search.steps(record), record)
        while not searcher.finished:
            for arch in searcher.ask():
                genes = np.array(space.encode(arch).genes, dtype=np.int64)
                assert run.is_new(genes), 'a network was asked for twice, or misses the budget'
                accuracy, _ = run.ask(genes)
                asked.add(arch)
                searcher.tell(arch, Score(round(accuracy * TOTAL / 100), TOTAL))
    assert len(asked) == len(run.found) == record.evaluations


def random(run: Run) -> None:
    """Networks of the table in random order."""
    for row in run.rng.permutation(run.problem.allowed)[: run.evaluations]:
        run.ask(run.problem.truth.genes[row])


def regularised_evolution(run: Run) -> None:
    """Aging evolution (Real et al. 2019): the best of a sample has a child, the oldest dies.

    A child differs from its parent in one gene, and is new and within the caps.
    """
    size, sample = AGING
    space, rng = run.problem.truth.space, run.rng
    choices = np.flatnonzero(space.num_choices > 1)
    alive: deque[tuple[float, Genes]] = deque(maxlen=size)
    while not run.is_over:
        child: Genes | None = None
        if len(alive) == size:
            picked = rng.choice(size, sample, replace=False)
            _, parent = max((alive[i] for i in picked), key=lambda each: each[0])
            for _ in range(_MUTATIONS):
                genes = randomise_dead(space, parent[None], rng)[0]
                gene = rng.choice(choices)
                genes[gene] = (
                    genes[gene] + rng.integers(1, space.num_choices[gene])
                ) % space.num_choices[gene]
                genes = space.canonicalise(genes[None])[0]
                if run.is_new(genes):
                    child = genes
                    break
        child = run.random() if child is None else child
        alive.append((run.ask(child)[0], child))


def _optuna(run: Run, name: str, is_conditional: bool) -> None:
    """A sampler of Optuna under ask and tell, with the genes as parameters.

    Genes of numbers are integers, others categories. A proposal outside the caps is told as a
    trial whose constraint is violated by its excess; the samplers rank such trials by that alone.

    Args:
        run: Counts the evaluations.
        name: Class of the sampler.
        is_conditional: Whether blocks that a network does not have are no parameters of it.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = getattr(optuna.samplers, name)(seed=run.seed)
    study = optuna.create_study(direction='maximize', sampler=sampler)
    space = run.problem.truth.space
    depth_of = [stage.depth for stage in space.stage_genes]
    chosen = np.flatnonzero(space.num_choices > 1).tolist()

    def suggested(trial: optuna.Trial) -> Genes:
        genes = np.zeros(space.num_genes, dtype=np.int64)
        for i in chosen:
            gene = space.genes[i]
            depth = space.stages[gene.stage].depths[genes[depth_of[gene.stage]]]
            if is_conditional and gene.slot >= depth:
                continue
            most = len(gene.values)
            if all(isinstance(value, (int, float)) for value in gene.values):
                genes[i] = trial.suggest_int(f'gene {i}', 0, most - 1)
            else:
                genes[i] = trial.suggest_categorical(f'gene {i}', range(most))
        return space.canonicalise(genes[None])[0]

    while not run.is_over:
        if run.is_stuck:
            genes = run.random()
            study.enqueue_trial({f'gene {i}': int(genes[i]) for i in chosen})
        trial = study.ask()
        accuracy, excess = run.ask(suggested(trial))
        if run.problem.caps or not run.problem.truth.is_complete:
            trial.set_constraint('excess', excess)
        study.tell(trial, accuracy)


def tpe(run: Run) -> None:
    """Optuna's tree-structured Parzen estimator."""
    _optuna(run, 'TPESampler', is_conditional=True)


def nsga2(run: Run) -> None:
    """Optuna's NSGA-II, of one objective; parameters that not all trials have it only draws."""
    _optuna(run, 'NSGAIISampler', is_conditional=False)


def pymoo_ga(run: Run) -> None:
    """pymoo's GA as its documentation has it for integers; proposals are made canonical.

    A proposal outside the caps is told with its excess as the violation of a constraint.
    """
    from pymoo.algorithms.soo.nonconvex.ga import GA
    from pymoo.core.problem import Problem as Box
    from pymoo.core.repair import Repair
    from pymoo.core.termination import NoTermination
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.sampling.rnd import IntegerRandomSampling

    space = run.problem.truth.space
    chosen = np.flatnonzero(space.num_choices > 1)

    def whole(values: np.ndarray) -> Genes:
        genes = np.zeros((len(values), space.num_genes), dtype=np.int64)
        genes[:, chosen] = np.around(values).astype(np.int64)
        return space.canonicalise(genes)

    class Canonical(Repair):
        def _do(self, problem: Box, X: np.ndarray, **kwargs) -> np.ndarray:
            return whole(X)[:, chosen]

    operators = dict(prob=1.0, eta=3.0, vtype=float, repair=Canonical())
    algorithm = GA(
        pop_size=GA_POPULATION,
        sampling=IntegerRandomSampling(),
        crossover=SBX(**operators),
        mutation=PM(**operators),
        eliminate_duplicates=True,
    )
    upper = space.num_choices[chosen] - 1
    box = Box(n_var=len(chosen), n_obj=1, n_ieq_constr=1, xl=0, xu=upper, vtype=int)
    algorithm.setup(box, termination=NoTermination(), seed=run.seed, verbose=False)
    while not run.is_over:
        proposals = algorithm.ask()
        if proposals is None or not len(proposals) or run.is_stuck:
            run.ask(run.random())
            continue
        told = np.array([run.ask(genes) for genes in whole(proposals.get('X'))])
        proposals.set('F', -told[:, :1])
        proposals.set('G', told[:, 1:])
        # What would be set by an evaluation.
        for proposal in proposals:
            proposal.evaluated.update(['F', 'G'])
        algorithm.tell(infills=proposals)


METHODS: dict[str, tuple[Callable[[Run], None], str | None]] = {
    'ours': (ours, None),
    'random': (random, None),
    'regularised evolution': (regularised_evolution, None),
    'TPE (Optuna)': (tpe, 'optuna'),
    'NSGA-II (Optuna)': (nsga2, 'optuna'),
    'GA (pymoo)': (pymoo_ga, 'pymoo'),
}
"""Methods, and the packages that they need."""


def is_here(method: str) -> bool:
    """Whether the package of a method is installed."""
    package = METHODS[method][1]
    return package is None or importlib.util.find_spec(package) is not None


def curve(problem: Problem, method: str, evaluations: int, seed: int) -> np.ndarray:
    """Regret in points after 1, 2, ... evaluations of one run, shape (evaluations,)."""
    run = Run(problem, evaluations, seed)
    METHODS[method][0](run)
    best = np.maximum.accumulate(run.found)
    # A table with fewer networks is known by then.
    best = np.concatenate([best, np.full(evaluations - len(best), best[-1])])
    return problem.best - best
