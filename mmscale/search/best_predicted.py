"""The networks of the best predicted scores within budgets and caps, over a whole space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmscale.arch import Arch, Genotype, Scaling
from mmscale.arch.genes import Genes
from mmscale.cost import Costs
from mmscale.errors import UsageError
from mmscale.search.distinct import distinct_scalings
from mmscale.search.limits import Limits
from mmscale.search.operators import crossover, mutate, tournament
from mmscale.search.repair import descend

Predict = Callable[[Sequence[Arch]], tuple[NDArray[np.float64], NDArray[np.float64]]]
"""Predicted scores of Archs and their standard deviations, each of shape (n,)."""

# Base models that are looked at under every scaling at the start.
_SAMPLE = 2048
# Where those meet the limits under few scalings, so many are moved there, under so many of them.
_REPAIR = 48
_REPAIRED_OPTIONS = 12
_FIRST = 192
_POPULATION = 48
_GENERATIONS = 16
_TOURNAMENT = 2
_RESCALED = 0.4
# Steps of the last improvement by single changes, and how many networks it begins with.
_CLIMBS = 6
_CLIMBERS = 2


@dataclass(frozen=True)
class Predicted:
    """A network with its predicted score.

    Attributes:
        base: The base model.
        scaling_stage: Scaling stage of the scaling.
        scaling: What scales it.
        arch: The scaled network.
        mean: Predicted score.
        deviation: Standard deviation of the prediction.
    """

    base: Genotype
    scaling_stage: int
    scaling: Scaling
    arch: Arch
    mean: float
    deviation: float


class BestPredicted:
    """Looks for the best predicted networks: any base model under any distinct scaling.

    An evolution over pairs of base model and scaling. Costs are exact and come from the table, so
    nothing beyond the limits is ever predicted. In the end single changes of the best, of one
    gene or of the scaling, are taken as long as one is predicted to be better.

    Args:
        limits: What every network has to keep to; of no growing budget.
        predict: Predicts scores.
        seed: Seed of all randomness.
    """

    def __init__(self, limits: Limits, predict: Predict, seed: int = 0) -> None:
        self.limits = limits
        self.table = limits.table
        self.space = limits.table.space
        self.predict = predict
        self._rng = np.random.default_rng(seed)
        self.options = [
            (j, scaling)
            for j in range(len(self.space.scaling_stages))
            for scaling in distinct_scalings(self.space, j)
        ]
        self._found: dict[str, tuple[Predicted, Genes, int]] = {}

    def run(self, number: int, starts: Sequence[tuple[Genotype, Scaling]] = ()) -> list[Predicted]:
        """The best predicted networks that were found, the best first.

        Args:
            number: How many at most.
            starts: Networks to begin with, beside random ones: base models and their scalings.

        Raises:
            UsageError: No network was found that keeps to the limits; the message says which one
                nothing meets, and what is near.
        """
        self._found = {}
        self._draw(starts)
        for _ in range(_GENERATIONS):
            self._breed()
        for _ in range(_CLIMBS):
            before = len(self._found)
            for _, genes, option in self._best(_CLIMBERS):
                self._look_around(genes, option)
            if len(self._found) == before:
                break
        return [predicted for predicted, _, _ in self._best(number)]

    def _best(self, number: int) -> list[tuple[Predicted, Genes, int]]:
        ranked = sorted(self._found.values(), key=lambda one: (-one[0].mean, one[0].arch.digest))
        return ranked[:number]

    # ------------------------------------------------------------------ candidates

    def _excess(self, genes: Genes, option: int) -> NDArray[np.float64]:
        stage, scaling = self.options[option]
        return self.limits.excess(self.table.costs(genes, scaling), stage)

    def _excesses(self, genes: Genes) -> NDArray[np.float64]:
        """By how much base models miss the limits under every scaling, shape (options, n)."""
        return np.stack([self._excess(genes, option) for option in range(len(self.options))])

    def _take(self, genes: Genes, options: Sequence[int]) -> None:
        """Predicts networks that are not known yet; all keep to the limits."""
        fresh: dict[str, tuple[Arch, Genes, int]] = {}
        for row, option in zip(genes, options, strict=True):
            arch = self.space.decode(row, self.options[option][1])
            if arch.digest not in self._found:
                fresh.setdefault(arch.digest, (arch, row, int(option)))
        means, deviations = self.predict([arch for arch, _, _ in fresh.values()])
        for (digest, (arch, row, option)), mean, deviation in zip(
            fresh.items(), means.tolist(), deviations.tolist(), strict=True
        ):
            base = self.space.genotype(row)
            predicted = Predicted(base, *self.options[option], arch, mean, deviation)
            self._found[digest] = predicted, row, option

    def _draw(self, starts: Sequence[tuple[Genotype, Scaling]]) -> None:
        """Begins with what is given, and with a sample over all scalings that the limits admit."""
        index = {scaling: i for i, (_, scaling) in enumerate(self.options)}
        given = [(base.genes, index[scaling]) for base, scaling in starts if scaling in index]
        genes = self.space.sample(self._rng, _SAMPLE)
        ends = [self.space.extreme(largest) for largest in (False, True)]
        genes = self.space.canonicalise(np.concatenate([genes, ends]))
        excesses = self._excesses(genes)
        reached = np.flatnonzero((excesses == 0).any(axis=1))
        chosen: list[tuple[Genes, int]] = []
        for option in reached:
            rows = np.flatnonzero(excesses[option] == 0)
            share = max(1, _FIRST // len(reached))
            rows = self._rng.choice(rows, min(share, len(rows)), replace=False)
            chosen += [(genes[row], option) for row in rows]
        if len(chosen) < _FIRST:
            chosen += self._repaired(genes, excesses)
        for row, option in given:
            row = np.array(row, dtype=np.int64)
            if self._excess(row[None], option)[0] == 0:
                chosen.append((row, option))
        if not chosen:
            raise UsageError(self._explain(genes))
        self._take(np.stack([row for row, _ in chosen]), [option for _, option in chosen])

    def _repaired(self, genes: Genes, excesses: NDArray[np.float64]) -> list[tuple[Genes, int]]:
        """Base models moved to the limits, under those scalings that come nearest."""
        nearest = np.argsort(excesses.min(axis=1), kind='stable')[:_REPAIRED_OPTIONS]
        found = []
        for option in nearest:
            rows = np.argsort(excesses[option], kind='stable')[:_REPAIR]
            moved = descend(
                self.space, genes[rows], lambda near, o=option: self._excess(near, o), self._rng
            )
            kept = moved[self._excess(moved, option) == 0]
            found += [(row, option) for row in kept]
        return found

    def _explain(self, genes: Genes) -> str:
        """Which limits no network was found to meet at once, and what is near."""
        costs = [self.table.costs(genes, scaling) for _, scaling in self.options]
        together = Costs(*(np.concatenate(columns) for columns in zip(*costs, strict=True)))
        limits, nearest = self.limits.first_missed(together, 0) or ((), '')
        keys = ' and '.join(limit.key for limit in limits)
        return f'no network was found that meets {keys} at once: {nearest}'

    # ------------------------------------------------------------------ variation

    def _breed(self) -> None:
        """Predicts children of the best, each under a scaling that the limits admit for it."""
        rng, space = self._rng, self.space
        parents = self._best(_POPULATION)
        pool = np.stack([genes for _, genes, _ in parents])
        own = np.array([option for _, _, option in parents])
        first = tournament(len(pool), _POPULATION, _TOURNAMENT, rng)
        second = tournament(len(pool), _POPULATION, _TOURNAMENT, rng)
        genes = crossover(space, pool[first], pool[second], rng)
        mutated = mutate(space, genes, rng)
        rescaled = rng.random(_POPULATION) < _RESCALED
        genes = np.where(rescaled[:, None], genes, mutated)
        admitted = self._excesses(genes) == 0
        kept, options = [], []
        for i, parent in enumerate(own[first]):
            allowed = np.flatnonzero(admitted[:, i])
            if not len(allowed):
                continue
            keeps = admitted[parent, i] and not rescaled[i]
            kept.append(i)
            options.append(parent if keeps else rng.choice(allowed))
        if kept:
            self._take(genes[kept], options)

    def _look_around(self, genes: Genes, option: int) -> None:
        """Predicts what differs from a network in one gene, or in the scaling alone."""
        choices = self.space.num_choices
        gene = np.repeat(np.arange(len(choices)), choices - 1)
        shift = np.concatenate([np.arange(1, n) for n in choices])
        near = np.repeat(genes[None], len(gene), axis=0)
        rows = np.arange(len(gene))
        near[rows, gene] = (near[rows, gene] + shift) % choices[gene]
        near = np.unique(self.space.canonicalise(near), axis=0)
        near = near[self._excess(near, option) == 0]
        scalings = np.flatnonzero(self._excesses(genes[None])[:, 0] == 0)
        both = np.concatenate([near, np.repeat(genes[None], len(scalings), axis=0)])
        self._take(both, [*[option] * len(near), *scalings.tolist()])
