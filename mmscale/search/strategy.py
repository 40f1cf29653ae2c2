"""Search of the scaling strategy: one Scaling per scaling stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from mmscale.arch import Arch, Scaling
from mmscale.arch.checks import integer
from mmscale.arch.space import Genes
from mmscale.errors import UsageError
from mmscale.search.entry import Score
from mmscale.search.family import FamilyFitness
from mmscale.search.feasibility import Strategy
from mmscale.search.schedule import checked_halving
from mmscale.search.scoring import Scorer

_POOL = 4096
# With halving: few, as each batch raises the bound of the next; several, as ranks share it.
_OPTIONS_AT_ONCE = 8


@dataclass(frozen=True)
class InitialStrategy:
    """The strategy that a search starts from.

    Attributes:
        strategy: One Scaling per scaling stage.
        base_models: Base models that meet its budgets, those it was chosen with first, shape
            (n, genes).
    """

    strategy: Strategy
    base_models: Genes


@dataclass(frozen=True)
class _Option:
    """A scaling of one scaling stage: its weighted effect, and the base models that admit it."""

    effect: Fraction
    scaling: Scaling
    admitted: NDArray[np.bool_]


class StrategySearch:
    """Chooses the Scaling of each scaling stage by the scores of the scaled networks.

    Args:
        family: Scores base models under a strategy.
        num_base_models: Size of the fixed set of base models that :meth:`initial` compares
            scalings on, at least 1.
        halving: Whether :meth:`given_base` may stop evaluating a scaling once it certainly
            cannot be the best; the choice is the same.

    Raises:
        ValueError: A setting is not allowed.
    """

    def __init__(
        self, family: FamilyFitness, num_base_models: int = 20, halving: bool = False
    ) -> None:
        integer('num_base_models', num_base_models, 1)
        self.halving = checked_halving(halving)
        self.family = family
        self.num_base_models = num_base_models

    # ------------------------------------------------------------------ without a base

    def initial(
        self, scorer: Scorer, rng: np.random.Generator, population: int
    ) -> InitialStrategy:
        """Chooses a strategy before there is a base model.

        All scaling stages are compared on one fixed set of base models, drawn from those that
        meet the base budget and have a feasible scaling at every scaling stage. A scaling's
        effect is the mean over this set of its score minus the mean score of all feasible
        scalings of the same base model, so that easy base models do not favour the scalings they
        admit; a base model that does not admit the scaling counts as no difference, so that luck
        with few does not win. Taken is the strategy of the largest weighted sum of effects that
        leaves at least `population` base models of a large sample feasible, or half as many, and
        so on down to 1.

        Args:
            scorer: Scores Archs.
            rng: Source of randomness.
            population: Number of base models that the strategy should leave.

        Raises:
            ValueError: No base model was found that meets the base budget and can be scaled to
                every scaling stage.
        """
        family, feasibility = self.family, self.family.feasibility
        pool = feasibility.draw(rng, _POOL)
        if not len(pool):
            raise UsageError(feasibility.explain_empty((Scaling(),), rng))
        admitted = [
            feasibility.admitted(pool, j) for j in range(1, len(family.space.scaling_stages))
        ]
        scalable = np.ones(len(pool), dtype=bool)
        for masks in admitted:
            scalable &= masks.any(axis=0)
        if not scalable.any():
            raise UsageError(feasibility.explain_unscalable(pool))
        pool = pool[scalable]
        options = [
            self._options(scorer, j, pool, masks[:, scalable])
            for j, masks in enumerate(admitted, start=1)
        ]
        chosen = _best_combination(options, len(pool), population)
        feasible = np.ones(len(pool), dtype=bool)
        for option in chosen:
            feasible &= option.admitted
        strategy = (Scaling(), *(option.scaling for option in chosen))
        return InitialStrategy(strategy, pool[feasible])

    def _options(
        self, scorer: Scorer, scaling_stage: int, pool: Genes, admitted: NDArray[np.bool_]
    ) -> list[_Option]:
        """The scalings that the fixed set admits, by falling effect.

        With a base model that cannot be scored under it a scaling is as one that is not admitted,
        and with none that can it is left out.
        """
        scalings = self.family.feasibility.distinct_scalings(scaling_stage)
        bases = pool[: self.num_base_models]
        pairs = [(s, b) for b in range(len(bases)) for s in np.flatnonzero(admitted[:, b])]
        effects = dict.fromkeys((s for s, _ in pairs), Fraction(0))
        weight = self.family.weights[scaling_stage]
        if weight:
            archs = [self.family.space.decode(bases[b], scalings[s]) for s, b in pairs]
            scores = scorer.score(archs)
            known = zip(pairs, scores, strict=True)
            values = {pair: score.value for pair, score in known if score is not None}
            if not values:
                raise UsageError(f'scaling stage {scaling_stage}: {scorer.explain_failures()}')
            effects = dict.fromkeys((s for s, _ in values), Fraction(0))
            for b in {base for _, base in values}:
                own = {s: value for (s, base), value in values.items() if base == b}
                mean = sum(own.values(), Fraction(0)) / len(own)
                for s, value in own.items():
                    effects[s] += weight * (value - mean) / len(bases)
        ranked = sorted(effects, key=lambda s: (-effects[s], s))
        return [_Option(effects[s], scalings[s], admitted[s]) for s in ranked]

    # ------------------------------------------------------------------ given a base

    def given_base(
        self, scorer: Scorer, genes: Genes, present: Strategy | None = None
    ) -> Strategy:
        """Chooses, per scaling stage, the best feasible scaling of one base model.

        The present scaling takes part, so that the fitness cannot fall. Equal scores: the lower
        cost wins, then the present one, then the first of the config. A scaling stage of weight
        0 keeps its present scaling.

        Args:
            scorer: Scores Archs.
            genes: The base model, shape (genes,).
            present: The strategy so far.

        Raises:
            ValueError: A scaling stage has no feasible scaling of this base model, or none of
                them can be scored.
        """
        family, feasibility = self.family, self.family.feasibility
        chosen = [Scaling()]
        for j in range(1, len(family.space.scaling_stages)):
            current = present[j] if present is not None else None
            options = feasibility.scalings_of(genes, j, current)
            if family.weights[j]:
                scores = self._scores(scorer, [arch for _, arch in options])
                row = np.atleast_2d(genes)
                if not any(scores):
                    raise UsageError(f'scaling stage {j}: {scorer.explain_failures()}')
                order = [
                    (-score.value, int(feasibility.cost(row, scaling)[0]), i)
                    for i, (score, (scaling, _)) in enumerate(zip(scores, options, strict=True))
                    if score is not None
                ]
                chosen.append(options[min(order)[-1]][0])
            else:
                chosen.append(options[0][0])
        return tuple(chosen)

    def _scores(self, scorer: Scorer, archs: Sequence[Arch]) -> list[Score | None]:
        """Scores the options of a scaling stage, or drops those that cannot be the best."""
        if not self.halving:
            return scorer.score(archs)
        scores = scorer.score(archs[:1])
        for start in range(1, len(archs), _OPTIONS_AT_ONCE):
            batch = archs[start : start + _OPTIONS_AT_ONCE]
            best = max((score.value for score in scores if score is not None), default=0)
            scores += scorer.score_needed(batch, [best] * len(batch))
        return scores


def _best_combination(
    options: Sequence[Sequence[_Option]], pool: int, wanted: int
) -> list[_Option]:
    """One option per scaling stage with the largest sum of effects that leaves enough of a pool.

    Args:
        options: Per scaling stage, by falling effect.
        pool: Number of base models that the options' masks stand for.
        wanted: Number of base models to leave; halved until there is a combination.
    """
    # Upper bound of what the scaling stages from j on can still add.
    bounds = [Fraction(0)]
    for stage in reversed(options):
        bounds.insert(0, bounds[0] + stage[0].effect)
    best: tuple[Fraction, list[_Option]] | None = None

    def descend(chosen: list[_Option], effect: Fraction, left: NDArray[np.bool_]) -> None:
        nonlocal best
        stage = len(chosen)
        if stage == len(options):
            best = effect, chosen
            return
        for option in options[stage]:
            if best is not None and effect + option.effect + bounds[stage + 1] <= best[0]:
                return
            admitted = left & option.admitted
            if np.count_nonzero(admitted) >= wanted:
                descend([*chosen, option], effect + option.effect, admitted)

    while best is None:
        if wanted < 1:
            raise UsageError('no strategy leaves a feasible base model')
        descend([], Fraction(0), np.ones(pool, dtype=bool))
        wanted //= 2
    return best[1]
