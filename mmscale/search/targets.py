"""A strategy as a target: each base model takes the feasible scalings that are nearest to it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mmscale.arch import Scaling
from mmscale.arch.genes import Genes
from mmscale.search.feasibility import Feasibility, Strategy
from mmscale.search.operators import take_new

_DRAWS = 8
# Cost grows with the multiplier of depth, and with the squares of the two others.
_EXPONENTS = (1, 2, 2)


def distance(one: Scaling, other: Scaling) -> float:
    """How far two scalings are apart, in powers of the cost that each multiplier makes."""
    pairs = (
        (one.depth, other.depth),
        (one.width, other.width),
        (one.resolution, other.resolution),
    )
    logs = (e * math.log(a / b) for e, (a, b) in zip(_EXPONENTS, pairs, strict=True))
    return math.hypot(*logs)


def admitted(feasibility: Feasibility, genes: Genes) -> list[NDArray[np.bool_]]:
    """Per scaling stage from 1 on, which distinct scalings base models admit.

    Args:
        feasibility: The budgets.
        genes: Shape (n, genes).

    Returns:
        Each of shape (distinct scalings, n).
    """
    stages = range(1, len(feasibility.space.scaling_stages))
    return [feasibility.admitted(genes, j) for j in stages]


def scalable(feasibility: Feasibility, genes: Genes) -> NDArray[np.bool_]:
    """Which base models have a feasible scaling at every scaling stage, shape (n,)."""
    found = np.ones(len(genes), dtype=bool)
    for masks in admitted(feasibility, genes):
        found &= masks.any(axis=0)
    return found


def nearest(feasibility: Feasibility, genes: Genes, target: Strategy) -> list[Strategy | None]:
    """The feasible scalings of base models that are nearest to those of a target.

    Args:
        feasibility: The budgets.
        genes: Base models within their own budget, shape (n, genes).
        target: One Scaling per scaling stage.

    Returns:
        Of every base model a strategy, or None where a scaling stage has no feasible scaling.
    """
    if not len(genes):
        return []
    chosen: list[Sequence[Scaling | None]] = [[target[0]] * len(genes)]
    for j, masks in enumerate(admitted(feasibility, genes), start=1):
        scalings = feasibility.distinct_scalings(j)
        order = sorted(range(len(scalings)), key=lambda s, j=j: distance(scalings[s], target[j]))
        ranked = masks[order]
        first = ranked.argmax(axis=0)
        chosen.append(
            [scalings[order[place]] if ranked[place, i] else None for i, place in enumerate(first)]
        )
    return [None if None in strategy else strategy for strategy in zip(*chosen, strict=True)]


def options(feasibility: Feasibility, genes: Genes, scaling_stage: int) -> list[list[Scaling]]:
    """The feasible scalings of base models, several of which may mean one network.

    Args:
        feasibility: The budgets.
        genes: Base models, shape (n, genes).
        scaling_stage: From 1 on.

    Returns:
        Of every base model a list.
    """
    scalings = feasibility.distinct_scalings(scaling_stage)
    masks = feasibility.admitted(genes, scaling_stage)
    return [[scalings[s] for s in np.flatnonzero(mask)] for mask in masks.T]


def draw_scalable(
    feasibility: Feasibility, rng: np.random.Generator, limit: int, seen: set[bytes]
) -> Genes:
    """Draws base models within their budget that have a feasible scaling at every scaling stage.

    Args:
        feasibility: The budgets.
        rng: Source of randomness.
        limit: Largest number to draw.
        seen: Bytes of genotypes that are not drawn; what is drawn is added.

    Returns:
        Shape (at most limit, genes).
    """
    found = np.empty((0, feasibility.space.num_genes), dtype=np.int64)
    # What cannot be scaled is not drawn again, and is no reason to look for it in vain later.
    tried = set(seen)
    for _ in range(_DRAWS):
        missing = limit - len(found)
        if missing < 1:
            break
        genes = feasibility.draw(rng, 4 * missing, seen=tried)
        if not len(genes):
            break
        genes = genes[scalable(feasibility, genes)]
        found = np.concatenate([found, take_new(genes, seen, missing)])
    return found


def most_admitted(feasibility: Feasibility, genes: Genes) -> Strategy:
    """The strategy whose scalings most base models admit, each stage for itself.

    Args:
        feasibility: The budgets.
        genes: Base models, shape (n, genes).
    """
    chosen = [Scaling()]
    for j, masks in enumerate(admitted(feasibility, genes), start=1):
        chosen.append(feasibility.distinct_scalings(j)[int(masks.sum(axis=1).argmax())])
    return tuple(chosen)
