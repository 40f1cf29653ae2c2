"""Multi-objective search: the front of score against one cost, by NSGA-II."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmscale.arch import Arch, Genotype, Scaling
from mmscale.arch.checks import integer, is_number, number
from mmscale.arch.genes import Genes
from mmscale.cost import Cost, Costs, CostTable, LatencyModel
from mmscale.cost.scaled import check_metric
from mmscale.errors import UsageError
from mmscale.search.distinct import distinct_scalings
from mmscale.search.dominance import (
    Point,
    crowding_distances,
    hypervolume,
    non_dominated_sort,
    pareto_front,
)
from mmscale.search.entry import Score
from mmscale.search.operators import crossover, mutate, tournament
from mmscale.search.pareto_result import ParetoMember, ParetoResult
from mmscale.search.preselection import EXPLORATION, Preselection
from mmscale.search.record import Batch, Record
from mmscale.search.result import Generation, OnStep
from mmscale.search.schedule import checked_evaluations, uses_surrogate
from mmscale.search.scoring import Scorer
from mmscale.search.searcher import Steps

# As in the released ScaleNet; and of a search of some hundred evaluations.
_POPULATION, _GENERATIONS = 64, 40
_SMALL_POPULATION = 16
_TOURNAMENT = 2
_ATTEMPTS = 8
# Draws for every individual that is missing: a narrow cost range admits few of them.
_DRAWS = 32
_SCALING_SHARE = 0.5
# With preselection: so many are proposed for every one that is scored.
_PROPOSALS = 8


@dataclass(frozen=True)
class _Individual:
    """A scored network: base genes, index of the scaling, digest of the Arch."""

    genes: tuple[int, ...]
    option: int
    digest: str
    cost: float
    score: Score

    @property
    def point(self) -> Point:
        """What dominance compares."""
        return self.score.value, self.cost


class ParetoSearch:
    """NSGA-II over pairs of a base model and any distinct scaling of any scaling stage.

    (mu + lambda) with lambda equal to mu. A child comes from two binary tournaments on (rank,
    crowding distance): crossover at the boundaries of network stages with the scaling of either
    parent, then a mutation of live genes or of the scaling, which moves to the same or a
    neighbouring scaling stage. No Arch enters twice, whichever genes and scaling it is written
    as, and costs are checked by table before anything is scored. A single generation is random
    search.

    Args:
        table: Costs of the space.
        metric: The cost: ``flops``, ``params``, ``acts`` or ``latency``.
        cost_range: Smallest and largest cost that is of interest, latencies in milliseconds; by
            default all of the space.
        population: Networks of a generation, at least 2; by default 64, and 16 where
            `evaluations` is set.
        generations: Number of generations, the random first one included; by default 40, and as
            many as there are evaluations for where these are set.
        mutations: Expected number of gene changes of a child whose genes mutate.
        latency_model: Predicts latencies, or the JSON file of such a model; never a measured time,
            so that replays are identical.
        evaluations: Distinct Archs to score at most.
        surrogate: Whether to predict children before they are scored: many are proposed, those
            are scored that are predicted to be nearest to a front with what was scored. By
            default where `evaluations` is set.
        seed: Seed of all randomness.

    Attributes:
        family: None: there are no budgets.

    Raises:
        ValueError: A setting is not allowed, or the space has no network in the cost range.
    """

    family = None

    def __init__(
        self,
        table: CostTable,
        metric: str = 'flops',
        cost_range: Sequence[float] | None = None,
        population: int | None = None,
        generations: int | None = None,
        mutations: float = 1.0,
        latency_model: LatencyModel | str | Path | None = None,
        evaluations: int | None = None,
        surrogate: bool | None = None,
        seed: int = 0,
    ) -> None:
        if latency_model is not None and not isinstance(latency_model, LatencyModel):
            latency_model = _load(latency_model)
        check_metric(metric, latency_model)
        self.evaluations = checked_evaluations(evaluations, 1)
        if population is None:
            population = _POPULATION if evaluations is None else _SMALL_POPULATION
        if generations is None:
            generations = _GENERATIONS if evaluations is None else evaluations
        integer('population', population, 2)
        integer('generations', generations, 1)
        integer('seed', seed, 0)
        number('mutations', mutations, above=0)
        self.table = table
        self.space = table.space
        self.metric = metric
        self.population = population
        self.generations = generations
        self.mutations = mutations
        self.latency_model = latency_model
        self.surrogate = uses_surrogate(surrogate, evaluations)
        self.seed = seed
        self._options: list[tuple[int, Scaling]] = []
        self._limits(cost_range)
        self._seen: set[str] = set()
        self._scored: list[_Individual] = []

    @property
    def most_evaluations(self) -> int:
        """Upper bound of the distinct Archs that :meth:`run` evaluates."""
        most = self.population * self.generations
        return most if self.evaluations is None else min(most, self.evaluations)

    def _limits(self, cost_range: Sequence[float] | None) -> None:
        """Finds the cost range, and the scalings that can meet it."""
        space = self.space
        options = [
            (j, scaling)
            for j in range(len(space.scaling_stages))
            for scaling in distinct_scalings(space, j)
        ]
        costs = np.array([self._range(scaling) for _, scaling in options])
        low, high = costs.min().item(), costs.max().item()
        self.cost_range = _checked_range(cost_range) if cost_range is not None else (low, high)
        reaching = (costs[:, 0] <= self.cost_range[1]) & (costs[:, 1] >= self.cost_range[0])
        if not reaching.any():
            raise UsageError(
                f'cost_range={list(self.cost_range)} is out of reach: networks of this space have '
                f'{low:,} to {high:,} {self.metric}'
                + (', and no scaling leads into the range' if len(options) > 1 else '')
            )
        self._options = [options[i] for i in np.flatnonzero(reaching)]
        stages = np.array([j for j, _ in self._options])
        # By scaling stage, leaving out those that cannot meet the range.
        self._stages = [np.flatnonzero(stages == j) for j in np.unique(stages)]
        self._place = np.searchsorted(np.unique(stages), stages)

    # ------------------------------------------------------------------ costs

    def _range(self, scaling: Scaling) -> tuple[float, float]:
        """Lowest and highest cost under one scaling; of latencies bounds."""
        if self.metric != 'latency':
            return self.table.range(self.metric, scaling)
        ranges = [self.table.range(column, scaling) for column in Costs._fields]
        # A latency rises with every cost.
        low, high = (Cost(*column) for column in zip(*ranges, strict=True))
        return self._latency(low), self._latency(high)

    def _costs(self, genes: Genes, scaling: Scaling) -> NDArray:
        """Costs of base models under one scaling, shape (n,)."""
        costs = self.table.costs(genes, scaling)
        if self.metric != 'latency':
            return getattr(costs, self.metric)
        rows = zip(*(column.tolist() for column in costs), strict=True)
        return np.array([self._latency(Cost(*row)) for row in rows])

    def _latency(self, cost: Cost) -> float:
        latency = float(self.latency_model.predict(cost))
        if not 0 < latency < math.inf:
            raise UsageError(f'latency_model predicts {latency} ms for {cost}')
        return latency

    def _latency_settings(self) -> dict[str, Any]:
        model = self.latency_model
        if model is None:
            return {}
        constants = {key: getattr(model, key) for key in ('a', 'b', 'c')}
        return {'latency_model': {**constants, 'setting': asdict(model.setting)}}

    # ------------------------------------------------------------------ individuals

    def _take_new(
        self, genes: Genes, options: NDArray[np.int64], limit: int
    ) -> list[tuple[Genes, int, Arch, float]]:
        """The first pairs inside the cost range whose Arch was not seen yet, at most `limit`."""
        costs = np.empty(len(genes))
        if self.metric != 'latency':
            costs = np.empty(len(genes), dtype=np.int64)
        for option in np.unique(options):
            rows = options == option
            costs[rows] = self._costs(genes[rows], self._options[option][1])
        low, high = self.cost_range
        taken = []
        for i in np.flatnonzero((costs >= low) & (costs <= high)):
            if len(taken) == limit:
                break
            arch = self.space.decode(genes[i], self._options[options[i]][1])
            if arch.digest not in self._seen:
                self._seen.add(arch.digest)
                taken.append((genes[i], int(options[i]), arch, costs[i].item()))
        return taken

    def _score(self, pairs: list[tuple[Genes, int, Arch, float]]) -> Steps[list[_Individual]]:
        scores = yield Batch([arch for _, _, arch, _ in pairs])
        individuals = [
            _Individual(tuple(genes.tolist()), option, arch.digest, cost, score)
            for (genes, option, arch, cost), score in zip(pairs, scores, strict=True)
            if score is not None
        ]
        self._scored += individuals
        return individuals

    def _random_options(
        self, places: NDArray[np.int64], rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """A random scaling of each of these scaling stages."""
        lots = rng.random(len(places))
        return np.array(
            [
                self._stages[place][int(lot * len(self._stages[place]))]
                for place, lot in zip(places, lots, strict=True)
            ],
            dtype=np.int64,
        )

    def _draw(self, rng: np.random.Generator, limit: int) -> list[tuple[Genes, int, Arch, float]]:
        """New networks: a uniform scaling stage, a scaling of it, a base model."""
        drawn: list[tuple[Genes, int, Arch, float]] = []
        for _ in range(_ATTEMPTS):
            missing = limit - len(drawn)
            if not missing:
                break
            count = _DRAWS * missing
            genes = self.space.sample(rng, count)
            places = rng.integers(0, len(self._stages), count)
            drawn += self._take_new(genes, self._random_options(places, rng), missing)
        return drawn

    def _children(
        self, parents: list[_Individual], rng: np.random.Generator, limit: int
    ) -> list[tuple[Genes, int, Arch, float]]:
        """New networks from parents that are sorted best first."""
        pool = np.array([parent.genes for parent in parents], dtype=np.int64)
        pool_options = np.array([parent.option for parent in parents], dtype=np.int64)
        children: list[tuple[Genes, int, Arch, float]] = []
        for _ in range(_ATTEMPTS):
            missing = limit - len(children)
            if not missing:
                return children
            first = tournament(len(pool), missing, _TOURNAMENT, rng)
            second = tournament(len(pool), missing, _TOURNAMENT, rng)
            genes = crossover(self.space, pool[first], pool[second], rng)
            options = pool_options[np.where(rng.random(missing) < 0.5, first, second)]
            rescaled = rng.random(missing) < _SCALING_SHARE
            mutated = mutate(self.space, genes, rng, self.mutations)
            genes = np.where(rescaled[:, None], genes, mutated)
            moved = self._place[options] + rng.integers(-1, 2, missing)
            moved = self._random_options(np.clip(moved, 0, len(self._stages) - 1), rng)
            options = np.where(rescaled, moved, options)
            children += self._take_new(genes, options, missing)
        return children + self._draw(rng, limit - len(children))

    def _promising(
        self, pool: list[tuple[Genes, int, Arch, float]], preselection: Preselection
    ) -> list[tuple[Genes, int, Arch, float]]:
        """Of a pool those that are predicted to be nearest to a front with what was scored.

        The others may be proposed again.
        """
        mean, deviation = preselection.predict([arch for _, _, arch, _ in pool])
        hoped = mean + EXPLORATION * deviation
        points = [i.point for i in self._scored]
        points += [(h, cost) for h, (_, _, _, cost) in zip(hoped.tolist(), pool, strict=True)]
        order: list[tuple[int, float, int]] = []
        for rank, front in enumerate(non_dominated_sort(points)):
            distances = crowding_distances([points[i] for i in front])
            order += [(rank, -d, i) for i, d in zip(front, distances, strict=True)]
        known = len(self._scored)
        ranked = [i - known for _, _, i in sorted(order) if i >= known]
        self._seen -= {pool[i][2].digest for i in ranked[self.population :]}
        return [pool[i] for i in ranked[: self.population]]

    # ------------------------------------------------------------------ the search

    def _survivors(self, individuals: list[_Individual]) -> list[_Individual]:
        """The best by rank, then by crowding distance, sorted so."""
        order = []
        for rank, front in enumerate(non_dominated_sort([i.point for i in individuals])):
            members = [individuals[i] for i in front]
            distances = crowding_distances([member.point for member in members])
            for member, distance in zip(members, distances, strict=True):
                order.append((rank, -distance, member.cost, member.digest, member))
        return [entry[-1] for entry in sorted(order)[: self.population]]

    def steps(self, record: Record, on_step: OnStep | None = None) -> Steps[ParetoResult]:
        """Searches from the start; what the archive knows is not asked for again.

        Args:
            record: What is known.
            on_step: Called with every generation.

        Raises:
            ValueError: No network was found in the cost range, or none can be scored.
        """
        self._seen, self._scored = set(), []
        record.best, record.most_evaluations = None, self.most_evaluations
        preselection = Preselection(record, self.seed) if self.surrogate else None
        survivors: list[_Individual] = []
        areas: list[float] = []
        for generation in range(1, self.generations + 1):
            rng = np.random.default_rng([self.seed, generation])
            if not survivors:
                pairs = self._draw(rng, self.population)
            elif preselection is None or not preselection.is_ready:
                pairs = self._children(survivors, rng, self.population)
            else:
                pool = self._children(survivors, rng, _PROPOSALS * self.population)
                pairs = self._promising(pool, preselection)
            if self.evaluations is not None:
                pairs = pairs[: self.evaluations - record.evaluations]
            if not pairs:
                break
            record.step = f'generation {generation} of {self.generations}'
            predicted: list[float] = []
            if preselection is not None and preselection.is_ready:
                predicted = preselection.predict([arch for _, _, arch, _ in pairs])[0].tolist()
            scored = yield from self._score(pairs)
            correlation = None
            if predicted:
                of = {pair[2].digest: value for pair, value in zip(pairs, predicted, strict=True)}
                values = [(of[i.digest], float(i.score.value)) for i in scored]
                correlation = preselection.compare(*zip(*values, strict=True)) if values else None
            survivors = self._survivors(survivors + scored)
            if not survivors:
                raise UsageError(f'{record.step}: {record.explain_failures()}')
            record.best = max(individual.score.value for individual in self._scored)
            areas.append(hypervolume([i.point for i in self._scored], self.cost_range))
            if on_step is not None:
                population = tuple((i.cost, i.score.value) for i in survivors)
                on_step(
                    Generation(
                        'pareto', 0, generation, record.evaluations, population, correlation
                    )
                )
        if not survivors:
            low, high = self.cost_range
            raise UsageError(f'no network of {low:,} to {high:,} {self.metric} was found')
        return ParetoResult(
            metric=self.metric,
            front=tuple(self._front()),
            evaluations=record.evaluations,
            failed=len(record.failed),
            hypervolume=tuple(areas),
            seed=self.seed,
            settings={
                'cost_range': list(self.cost_range),
                'population': self.population,
                'generations': self.generations,
                'mutations': self.mutations,
                'evaluations': self.evaluations,
                'surrogate': self.surrogate,
                **self._latency_settings(),
            },
            details=preselection.details() if preselection is not None else {},
        )

    def run(self, scorer: Scorer, on_step: OnStep | None = None) -> ParetoResult:
        """Searches with a scorer, see :meth:`steps`."""
        return scorer.drive(self.steps(scorer, on_step))

    def _front(self) -> list[ParetoMember]:
        members = []
        for i in pareto_front([individual.point for individual in self._scored]):
            individual = self._scored[i]
            scaling_stage, scaling = self._options[individual.option]
            base = Genotype(individual.genes)
            arch = self.space.decode(base, scaling)
            cost = self.table.cost(arch)
            latency = self._latency(cost) if self.latency_model is not None else None
            members.append(
                ParetoMember(base, scaling_stage, scaling, arch, cost, individual.score, latency)
            )
        return members


def _load(path: object) -> LatencyModel:
    if not isinstance(path, (str, Path)):
        raise UsageError(f'latency_model={path!r:.60} must be the path of a JSON file')
    try:
        return LatencyModel.load(path)
    except (OSError, ValueError) as error:
        raise UsageError(f'latency_model: {error}') from error


def _checked_range(cost_range: object) -> tuple[float, float]:
    numbers = (
        isinstance(cost_range, Sequence)
        and len(cost_range) == 2
        and all(map(is_number, cost_range))
    )
    if not numbers or not 0 < cost_range[0] <= cost_range[1]:
        raise UsageError(f'cost_range={cost_range!r:.60} must be (low, high) with 0 < low <= high')
    return tuple(cost_range)
