"""Evolution operators on canonical genotypes, vectorised over populations."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmscale.arch import SearchSpace
from mmscale.arch.genes import Genes, StageGenes

# A row whose mutation means the same network is mutated so many times anew.
_RETRIES = 32
# Choices of a block, over all rows, that are compared at once.
_OPTIONS = 2**21


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
    """A random genotype of the same base model.

    Dead genes get random values, so that a network stage that gets deeper gets random blocks.
    Of choices that mean the same block a random one is taken: what a block of one kind ignores
    may matter to the kind that it mutates to.

    Args:
        space: The search space.
        genes: Shape (n, genes).
        rng: Source of randomness.
    """
    used = space.gene_slot < space.depths(genes)[:, space.gene_stage]
    filled = np.where(used, genes, rng.integers(0, space.num_choices, genes.shape))
    for stage in space.stage_genes:
        if stage.is_ambiguous:
            step = max(1, _OPTIONS // max(stage.first.count, stage.further.count))
            for start in range(0, len(filled), step):
                _take_synonyms(stage, filled[start : start + step], rng)
    return filled


def _take_synonyms(stage: StageGenes, genes: Genes, rng: np.random.Generator) -> None:
    """Takes any choices of a network stage that mean the same blocks; changes the genes."""
    depths = stage.depths(genes)
    allowed = np.ones((len(genes), stage.first.shared), dtype=bool)
    places = []
    for slot in range(len(stage.columns)):
        rows = np.flatnonzero(slot < depths)
        place = tuple(width[rows] for width in stage.widths(genes, slot))
        option = stage.option(genes, slot)[rows]
        allowed[rows] &= stage.options(slot).privates[(*place, option)] >= 0
        places.append((rows, place, option))
    shared = _any_of(allowed, rng)
    for slot, (rows, place, option) in enumerate(places):
        options = stage.options(slot)
        ids = options.ids[place]
        same = ids == np.take_along_axis(ids, option[:, None], axis=1)
        same = same.reshape(len(rows), options.shared, options.private)
        private = _any_of(same[np.arange(len(rows)), shared[rows]], rng)
        own = genes[rows]
        stage.set_option(own, slot, shared[rows] * options.private + private)
        genes[rows] = own


def _any_of(mask: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:
    """Index of a random true element of every row."""
    return np.where(mask, rng.random(mask.shape), -1).argmax(axis=1)


def mutate(
    space: SearchSpace, genes: Genes, rng: np.random.Generator, changes: float = 1.0
) -> Genes:
    """Changes live genes to other values, each gene equally likely, at least one per row.

    With ``skips='anywhere'`` another depth takes blocks out at random places, or puts random ones
    in; else it changes the last ones.

    Args:
        space: The search space.
        genes: Genotypes, shape (n, genes).
        rng: Source of randomness.
        changes: Expected changes of a row, before one is enforced.

    Returns:
        Canonical genotypes, shape (n, genes); a row differs from its parent if there is another
        base model at all.
    """
    parents = space.canonicalise(genes)
    mutated = _mutated(space, parents, rng, changes)
    if space.size == 1:
        return mutated
    for _ in range(_RETRIES):
        # Other choices may mean the same network.
        rows = np.flatnonzero((mutated == parents).all(axis=1))
        if not len(rows):
            break
        mutated[rows] = _mutated(space, parents[rows], rng, changes)
    return mutated


def _mutated(space: SearchSpace, genes: Genes, rng: np.random.Generator, changes: float) -> Genes:
    lots = rng.random(genes.shape)
    shift = rng.integers(1, np.maximum(space.num_choices, 2), genes.shape)
    filled = randomise_dead(space, genes, rng)
    live = space.live(filled)
    rate = changes / np.maximum(live.sum(axis=1, keepdims=True), 1)
    lots = np.where(live, lots, np.inf)
    changed = live & ((lots < rate) | (lots == lots.min(axis=1, keepdims=True)))
    mutated = np.where(changed, (filled + shift) % space.num_choices, filled)
    for stage in space.stage_genes:
        if stage.choices.skips == 'anywhere':
            _skip_anywhere(stage, filled, mutated, rng)
    return space.canonicalise(mutated)


def _skip_anywhere(
    stage: StageGenes, before: Genes, after: Genes, rng: np.random.Generator
) -> None:
    """Moves blocks where the depth changed: skips are at random places, but not the first.

    Args:
        stage: A network stage.
        before: Genes before the change, shape (n, genes).
        after: Those after it, with the blocks where they were; is changed.
        rng: Source of randomness.
    """
    if len(stage.columns) < 2:
        return
    columns = np.array(
        [[c for c in row if c is not None and c not in stage.shared.values()]
         for row in stage.columns[1:]],
        dtype=np.int64,
    )  # fmt: skip
    own, new = (stage.depths(genes)[:, None] - 1 for genes in (before, after))
    # Of the places of the deeper of both, those whose blocks both have.
    place = np.arange(len(columns))
    lots = np.where(place < np.maximum(own, new), rng.random((len(after), len(columns))), np.inf)
    common = lots.argsort(axis=1).argsort(axis=1) < np.minimum(own, new)
    fewer = np.where(common, place, place + len(columns)).argsort(axis=1)
    more = np.where(common, common.cumsum(axis=1), own + (~common).cumsum(axis=1)) - 1
    source = np.where(new < own, fewer, np.where(new > own, more, place))
    blocks = after[:, columns]
    after[:, columns] = np.take_along_axis(blocks, source[:, :, None], axis=1)


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
