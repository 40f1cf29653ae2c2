"""Moves base models to where they may be, by changing single genes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mmscale.arch import SearchSpace
from mmscale.arch.genes import Genes
from mmscale.search.operators import randomise_dead

# Genes of the neighbours of base models that are looked at together.
_NEIGHBOURS = 2**21

Excess = Callable[[Genes], NDArray[np.float64]]
"""By how much base models, shape (n, genes), miss what is wanted: shape (n,), 0 where not."""


def descend(
    space: SearchSpace, genes: Genes, excess_of: Excess, rng: np.random.Generator
) -> Genes:
    """Lessens by how much base models miss what is wanted, as far as single changes do.

    Each step takes the single change that lessens it the most, or a random one of those after
    which nothing is missed.

    Args:
        space: The search space.
        genes: Shape (n, genes).
        excess_of: What is missed.
        rng: Source of randomness.

    Returns:
        Canonical genotypes, shape (n, genes), in their order; those that miss nothing unchanged.
    """
    genes = space.canonicalise(genes)
    excess = excess_of(genes)
    rows = np.flatnonzero(excess)
    choices = space.num_choices
    gene = np.repeat(np.arange(len(choices)), choices - 1)
    shift = np.concatenate([np.arange(1, n) for n in choices])
    for _ in range(space.num_genes):
        if not len(rows):
            break
        filled = randomise_dead(space, genes[rows], rng)
        reached = _reached(filled, gene, shift, choices[gene], excess_of)
        lots = np.where(reached == 0, -rng.random(reached.shape), reached)
        best = lots.argmin(axis=1)
        least = reached[np.arange(len(rows)), best]
        better = np.flatnonzero(least < excess[rows])
        moved, column = filled[better], gene[best[better]]
        place = np.arange(len(better)), column
        moved[place] = (moved[place] + shift[best[better]]) % choices[column]
        genes[rows[better]] = space.canonicalise(moved)
        excess[rows[better]] = least[better]
        rows = rows[better[least[better] > 0]]
    return genes


def _reached(
    genes: Genes, gene: Genes, shift: Genes, choices: Genes, excess_of: Excess
) -> NDArray[np.float64]:
    """Excess after every change of one gene (none, if it is dead), shape (n, changes)."""
    changes = np.arange(len(gene))
    # So many rows at once that all of their neighbours take some dozen megabytes.
    step = max(1, _NEIGHBOURS // (len(gene) * genes.shape[1]))
    found = np.empty((len(genes), len(gene)))
    for start in range(0, len(genes), step):
        near = np.repeat(genes[start : start + step, None], len(gene), axis=1)
        near[:, changes, gene] = (near[:, changes, gene] + shift) % choices
        excess = excess_of(near.reshape(-1, genes.shape[1]))
        found[start : start + step] = excess.reshape(-1, len(gene))
    return found
