"""Multi-objective search: the front of score against one cost, by NSGA-II."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmscale.arch import Arch, Genotype, Scaling
from mmscale.arch.checks import integer, is_number, number
from mmscale.arch.genes import Genes
from mmscale.cost import CostTable, LatencyModel
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
from mmscale.search.feasibility import noun
from mmscale.search.limits import Limits, PerStage, measure, model_settings, read_latency_model
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
        caps: By metric, what no network may exceed: a number, or a list with a number or None per
            scaling stage.
        evaluations: Distinct Archs to score at most.
        surrogate: Whether to predict children before they are scored: many are proposed, those
            are scored that are predicted to be nearest to a front with what was scored. By
            default where `evaluations` is set.
        seed: Seed of all randomness.

    Attributes:
        family: None: there are no budgets.
        limits: The caps.

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
        caps: Mapping[str, PerStage] | None = None,
        evaluations: int | None = None,
        surrogate: bool | None = None,
        seed: int = 0,
    ) -> None:
        model = read_latency_model(latency_model)
        check_metric(metric, model)
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
        self.latency_model = model
        self.limits = Limits(table, caps=caps, latency_model=model)
        self.surrogate = uses_surrogate(surrogate, evaluations)
        self.seed = seed
        self._options: list[tuple[int, Scaling]] = []
        self._choose_options(cost_range)
        self._seen: set[str] = set()
        self._scored: list[_Individual] = []

    @property
    def most_evaluations(self) -> int:
        """Upper bound of the distinct Archs that :meth:`run` evaluates."""
        most = self.population * self.generations
        return most if self.evaluations is None else min(most, self.evaluations)

    def _choose_options(self, cost_range: Sequence[float] | None) -> None:
        """Finds the cost range, and the scalings that can meet it and the caps."""
        space = self.space
        options = [
            (j, scaling)
            for j in range(len(space.scaling_stages))
            for scaling in distinct_scalings(space, j)
        ]
        costs = np.array([self.limits.range(self.metric, scaling) for _, scaling in options])
        low, high = costs.min().item(), costs.max().item()
        if not 0 < low <= high < math.inf:
            raise UsageError(f'latency_model predicts {low:.4g} to {high:.4g} ms in this space')
        self.cost_range = _checked_range(cost_range) if cost_range is not None else (low, high)
        reaching = (costs[:, 0] <= self.cost_range[1]) & (costs[:, 1] >= self.cost_range[0])
        if not reaching.any():
            raise UsageError(
                f'cost_range={list(self.cost_range)} is out of reach: networks of this space have '
                f'{low:,} to {high:,} {self.metric}'
                + (', and no scaling leads into the range' if len(options) > 1 else '')
            )
        options = [options[i] for i in np.flatnonzero(reaching)]
        self._options = [option for option in options if self._may_keep_to_caps(*option)]
        if not self._options:
            stage, scaling = options[0]
            for limit in self.limits.of(stage):
                self.limits.check_reach(limit, stage, [scaling], noun(space))
            raise UsageError(
                f'cost_range={list(self.cost_range)} and caps={self.limits.caps}: no scaling of '
                f'this space leads into both'
            )
        stages = np.array([j for j, _ in self._options])
        # By scaling stage, leaving out those that cannot meet the range.
        self._stages = [np.flatnonzero(stages == j) for j in np.unique(stages)]
        self._place = np.searchsorted(np.unique(stages), stages)

    def _may_keep_to_caps(self, scaling_stage: int, scaling: Scaling) -> bool:
        """Whether the smallest networks of a scaling keep to each cap for itself."""
        return all(
            self.limits.range(limit.metric, scaling)[0] <= limit.value
            for limit in self.limits.of(scaling_stage)
        )

    # ------------------------------------------------------------------ individuals

    def _take_new(
        self, genes: Genes, options: NDArray[np.int64], limit: int
    ) -> list[tuple[Genes, int, Arch, float]]:
        """The first pairs within range and caps whose Arch was not seen yet, at most `limit`."""
        costs = np.empty(len(genes), dtype=float if self.metric == 'latency' else np.int64)
        keeps = np.empty(len(genes), dtype=bool)
        for option in np.unique(options):
            rows = options == option
            stage, scaling = self._options[option]
            own = self.table.costs(genes[rows], scaling)
            costs[rows] = measure(own, self.metric, self.latency_model)
            keeps[rows] = self.limits.excess(own, stage) == 0
        low, high = self.cost_range
        taken = []
        for i in np.flatnonzero(keeps & (costs >= low) & (costs <= high)):
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
            caps = f' within caps={self.limits.caps}' if self.limits.caps else ''
            raise UsageError(f'no network of {low:,} to {high:,} {self.metric} was found{caps}')
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
                **self.limits.settings,
                **model_settings(self.latency_model),
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
            model = self.latency_model
            latency = None if model is None else float(model.predict(cost))
            members.append(
                ParetoMember(base, scaling_stage, scaling, arch, cost, individual.score, latency)
            )
        return members


def _checked_range(cost_range: object) -> tuple[float, float]:
    numbers = (
        isinstance(cost_range, Sequence)
        and len(cost_range) == 2
        and all(map(is_number, cost_range))
    )
    if not numbers or not 0 < cost_range[0] <= cost_range[1]:
        raise UsageError(f'cost_range={cost_range!r:.60} must be (low, high) with 0 < low <= high')
    return tuple(cost_range)
