#!/usr/bin/env python
"""How many children of an evolution are new networks: the reference's operators against ours.

Both evolve base models of ScaleNet's space for the same analytic score under the same strategy,
with 64 survivors and 64 children a generation.

The reference's settings (its released code with pymoo 0.3.0): 43 genes of which 21 are frozen;
binary tournament, two-point crossover anywhere, polynomial integer mutation with eta 3 and
probability 1/43 per gene; duplicates are removed on the raw genotype, while identities between
blocks are moved after them only when a network is decoded. What misses a budget counts as a child
too; it ranks behind all that meet theirs, by how far it is off.
"""

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np
from mmengine.config import Config

from mmscale.arch import SearchSpace
from mmscale.cost import CostTable
from mmscale.search import Feasibility
from mmscale.search.analytic import AnalyticEvaluator
from mmscale.search.operators import crossover, mutate, take_new, tournament

SPACE = Path(__file__).parents[1] / 'configs' / '_base_' / 'search_spaces' / 'scalenet.py'
# As in configs/scalenet/search-mcea_in1k.py.
BUDGET, TOLERANCE = 340e6, 0.05
POPULATION = 64
# Genes of the reference, one per block of the deepest scaled network; its spare ones are frozen.
SLOTS = 43
ETA = 3
ATTEMPTS = 100


class Problem:
    """Scores base models under the hidden strategy; infeasible ones by how far they are off."""

    def __init__(self, space: SearchSpace, feasibility: Feasibility, seed: int) -> None:
        self.space, self.feasibility = space, feasibility
        self.evaluator = AnalyticEvaluator(feasibility, seed)
        self.strategy = self.evaluator.strategy

    def fitness(self, genes: np.ndarray) -> np.ndarray:
        deviations = np.abs(self.feasibility.deviations(genes, self.strategy))
        excess = np.maximum(deviations - self.feasibility.tolerance, 0).sum(axis=1)
        fitness = -excess
        for i in np.flatnonzero(excess == 0):
            scores = [
                self.evaluator.evaluate(self.space.decode(genes[i], scaling)).value
                for scaling in self.strategy[1:]
            ]
            fitness[i] = float(sum(scores) / len(scores))
        return fitness


class Reference:
    """The reference's operators on its raw genotype: 0 is an identity, 1.. are kernels."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        space = problem.space
        slots = space.gene_slot[space.gene_slot >= 0]
        kernels = space.num_choices[space.gene_slot >= 0]
        frozen = np.zeros(SLOTS - len(slots), dtype=np.int64)
        self.low = np.concatenate([np.where(slots == 0, 1, 0), frozen])
        self.high = np.concatenate([kernels, frozen])

    def networks(self, raw: np.ndarray) -> np.ndarray:
        """Canonical genotypes of raw ones, identities moved after the blocks."""
        space = self.problem.space
        rows = []
        for row in raw:
            genes, start = [], 0
            for stage in space.stages:
                size = stage.depths[-1]
                blocks = [op - 1 for op in row[start : start + size] if op]
                genes += [stage.depths.index(len(blocks)), *blocks, *[0] * (size - len(blocks))]
                start += size
            rows.append(genes)
        return space.canonicalise(np.array(rows))

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return rng.integers(self.low, self.high + 1, (count, SLOTS))

    def offspring(self, parents: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        pairs = parents[tournament(len(parents), POPULATION, 2, rng)].reshape(-1, 2, SLOTS)
        children = []
        for first, second in pairs:
            low, high = np.sort(rng.choice(np.arange(1, SLOTS), 2, replace=False))
            inside = (np.arange(SLOTS) >= low) & (np.arange(SLOTS) < high)
            children += [np.where(inside, second, first), np.where(inside, first, second)]
        return self._mutate(np.array(children), rng)

    def _mutate(self, genes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Polynomial mutation (Deb) of integers that stand for an interval of length 1."""
        low, high = self.low - 0.5, self.high + 0.5
        u = rng.random(genes.shape)
        below = (1 - (genes - low) / (high - low)) ** (ETA + 1)
        above = (1 - (high - genes) / (high - low)) ** (ETA + 1)
        down = (2 * u + (1 - 2 * u) * below) ** (1 / (ETA + 1)) - 1
        up = 1 - (2 * (1 - u) + 2 * (u - 0.5) * above) ** (1 / (ETA + 1))
        moved = np.rint(genes + np.where(u <= 0.5, down, up) * (high - low)).astype(np.int64)
        mutated = rng.random(genes.shape) < 1 / SLOTS
        return np.where(mutated, np.clip(moved, self.low, self.high), genes)


class Ours:
    """The operators of mmscale, whose genotypes are canonical, with repair of budgets."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def networks(self, genes: np.ndarray) -> np.ndarray:
        return genes

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return self.problem.feasibility.draw(rng, count, self.problem.strategy)

    def offspring(self, parents: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        space = self.problem.space
        first, second = (parents[tournament(len(parents), POPULATION, 2, rng)] for _ in range(2))
        children = mutate(space, crossover(space, first, second, rng), rng)
        return self.problem.feasibility.repair(children, self.problem.strategy, rng)


def evolve(operators: Reference | Ours, generations: int, seed: int) -> np.ndarray:
    """Evolves, and counts per generation of children.

    Returns:
        Shape (generations - 1, 4): share of the first offspring that are new networks; of the
        children that are scored, share of new networks and of new ones that meet all budgets;
        best fitness.
    """
    problem, rng = operators.problem, np.random.default_rng([1, seed])
    population = operators.sample(rng, POPULATION)
    known: set[bytes] = set()
    take_new(operators.networks(population), known, POPULATION)
    # What counts as a duplicate: ours all that was ever seen, the reference what is alive.
    fitness = problem.fitness(operators.networks(population))
    counts = []
    for _ in range(1, generations):
        order = np.argsort(-fitness, kind='stable')
        population, fitness = population[order], fitness[order]
        alive = {row.tobytes() for row in population}
        seen = set(known) if isinstance(operators, Ours) else alive
        children = population[:0]
        first = 0
        for attempt in range(ATTEMPTS):
            offspring = operators.offspring(population, rng)
            if not attempt and len(offspring):
                first = len(take_new(operators.networks(offspring), set(known), POPULATION))
            new = take_new(offspring, seen, POPULATION - len(children))
            children = np.concatenate([children, new])
            if len(children) == POPULATION:
                break
        networks = operators.networks(children)
        fresh = take_new(networks, known, POPULATION)
        feasible = problem.feasibility.feasible(fresh, problem.strategy)
        scored = max(len(children), 1)
        population = np.concatenate([population, children])
        fitness = np.concatenate([fitness, problem.fitness(networks)])
        best = np.argsort(-fitness, kind='stable')[:POPULATION]
        population, fitness = population[best], fitness[best]
        counts.append(
            (first / POPULATION, len(fresh) / scored, feasible.sum() / scored, fitness[0])
        )
    return np.array(counts)


def main() -> None:
    """Prints a table, mean and standard deviation over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, default=10)
    parser.add_argument('--generations', type=int, default=40)
    args = parser.parse_args()
    space = SearchSpace(**Config.fromfile(SPACE).space)
    feasibility = Feasibility(CostTable(space), BUDGET, tolerance=TOLERANCE)
    print(f'{args.seeds} seeds, {POPULATION} children a generation; mean ± standard deviation')
    columns = ('first offspring new', 'children new', 'new and feasible', 'best fitness')
    print('| operators | generations | ' + ' | '.join(columns) + ' |')
    print('|---' * 6 + '|')
    edges = [1, *range(10, args.generations, 10), args.generations]
    for name, operators in (('reference', Reference), ('ours', Ours)):
        runs = np.array(
            [
                evolve(operators(Problem(space, feasibility, seed)), args.generations, seed)
                for seed in range(args.seeds)
            ]
        )
        for low, high in pairwise(edges):
            part = runs[:, low - 1 : high - 1]
            values = np.concatenate([part[..., :3].mean(axis=1), part[:, -1:, 3]], axis=1)
            mean, std = values.mean(axis=0), values.std(axis=0)
            shares = [
                f'{100 * m:.0f} ± {100 * s:.0f} %' for m, s in zip(mean[:3], std[:3], strict=True)
            ]
            cells = [*shares, f'{mean[3]:.3f} ± {std[3]:.3f}']
            print(f'| {name} | {low + 1}-{high} | ' + ' | '.join(cells) + ' |')


if __name__ == '__main__':
    main()
