"""Evolution operators on canonical genotypes, vectorised over populations."""

from __future__ import annotations

import numpy as np

from mmscale.arch import SearchSpace
from mmscale.arch.space import Genes


def take_new(genes: Genes, seen: set[bytes], limit: int) -> Genes:
    """The first rows that were not seen yet, at most `limit`; they are added to `seen`.

    Args:
        genes: Canonical genotypes, shape (n, genes).
        seen: Bytes of genotypes.
        limit: Largest number of rows to take.

    Returns:
        Shape (at most limit, genes).
    """
    rows: list[int] = []
    for i, row in enumerate(genes):
        if len(rows) >= limit:
            break
        key = row.tobytes()
        if key not in seen:
            seen.add(key)
            rows.append(i)
    return genes[rows]


def randomise_dead(space: SearchSpace, genes: Genes, rng: np.random.Generator) -> Genes:
    """Gives the dead genes random values, so that a stage that gets deeper gets random kernels.

    Args:
        space: The search space.
        genes: Shape (n, genes).
        rng: Source of randomness.
    """
    return np.where(space.live(genes), genes, rng.integers(0, space.num_choices, genes.shape))


def mutate(
    space: SearchSpace, genes: Genes, rng: np.random.Generator, changes: float = 1.0
) -> Genes:
    """Changes live genes to other values, each gene equally likely, at least one per row.

    Args:
        space: The search space.
        genes: Genotypes, shape (n, genes).
        rng: Source of randomness.
        changes: Expected changes of a row, before one is enforced.

    Returns:
        Canonical genotypes, shape (n, genes); a row differs from its parent if it has a live
        gene at all.
    """
    live = space.live(genes)
    rate = changes / np.maximum(live.sum(axis=1, keepdims=True), 1)
    lots = np.where(live, rng.random(genes.shape), np.inf)
    changed = live & ((lots < rate) | (lots == lots.min(axis=1, keepdims=True)))
    shift = rng.integers(1, np.maximum(space.num_choices, 2), genes.shape)
    filled = randomise_dead(space, genes, rng)
    mutated = np.where(changed, (filled + shift) % space.num_choices, filled)
    return space.canonicalise(mutated)


def crossover(space: SearchSpace, first: Genes, second: Genes, rng: np.random.Generator) -> Genes:
    """Two-point crossover at the boundaries of network stages.

    Args:
        space: The search space.
        first: Parents, shape (n, genes).
        second: The other parents, shape (n, genes).
        rng: Source of randomness.

    Returns:
        Canonical genotypes, shape (n, genes): one or more neighbouring network stages, but not
        the last one, come from `second`, so that both parents take part; a space of one network
        stage returns `first`.
    """
    stages = len(space.stages)
    if stages < 2:
        return space.canonicalise(first)
    start = rng.integers(0, stages, (len(first), 1))
    end = (start + rng.integers(1, stages, (len(first), 1))) % stages
    low, high = np.minimum(start, end), np.maximum(start, end)
    swapped = (space.gene_stage >= low) & (space.gene_stage < high)
    return space.canonicalise(np.where(swapped, second, first))


def tournament(population: int, count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Selects parents from a population that is sorted best first.

    Args:
        population: Number of candidates.
        count: Number of parents to select.
        size: Candidates of a tournament, drawn with repeats; the best wins.
        rng: Source of randomness.

    Returns:
        Indices into the population, shape (count,).
    """
    return rng.integers(0, population, (count, size)).min(axis=1)
