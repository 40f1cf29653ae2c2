"""Search of the scaling strategy: one Scaling per scaling stage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from mmscale.arch import Arch, Scaling
from mmscale.arch.checks import integer
from mmscale.arch.genes import Genes
from mmscale.errors import UsageError
from mmscale.search.entry import Score
from mmscale.search.family import FamilyFitness
from mmscale.search.feasibility import Strategy
from mmscale.search.preselection import EXPLORATION, Preselection
from mmscale.search.record import Batch, Record
from mmscale.search.schedule import flag
from mmscale.search.searcher import Steps
from mmscale.search.targets import admitted, most_admitted

Options = dict[int, list[tuple[Scaling, Arch]]]
"""By scaling stage, scalings of one base model and what they make of it."""

_POOL = 4096
# With halving: few, as each batch raises the bound of the next; several, as ranks share it.
_OPTIONS_AT_ONCE = 8
# With preselection: scalings that are scored, for every scaling stage that counts.
_PROMISING = 4
# The same before there is anything to predict from.
_UNPREDICTED = 2


class StrategySearch:
    """Chooses the Scaling of each scaling stage by the scores of the scaled networks.

    Args:
        family: Scores base models under a strategy.
        num_base_models: Size of the fixed set of base models that :meth:`initial` compares
            scalings on; 0 to compare none.
        halving: Whether :meth:`given_base` may stop evaluating a scaling once it certainly
            cannot be the best; the choice is the same.

    Raises:
        ValueError: A setting is not allowed.
    """

    def __init__(
        self, family: FamilyFitness, num_base_models: int = 20, halving: bool = False
    ) -> None:
        integer('num_base_models', num_base_models, 0)
        self.halving = flag('halving', halving)
        self.family = family
        self.num_base_models = num_base_models

    # ------------------------------------------------------------------ without a base

    def initial(self, record: Record, rng: np.random.Generator) -> Steps[Strategy]:
        """Chooses a strategy before there is a base model.

        All scaling stages are compared on one fixed set of base models, drawn from those that
        meet the base budget and have a feasible scaling at every scaling stage. A scaling's
        effect is the mean over this set of its score minus the mean score of all feasible
        scalings of the same base model, so that easy base models do not favour the scalings they
        admit; a base model that does not admit the scaling counts as no difference, so that luck
        with few does not win. The strategy is a target, so no base model is left out by it. With
        no base models to compare on it is the one whose scalings most base models admit.

        Args:
            record: What is known.
            rng: Source of randomness.

        Raises:
            ValueError: No base model was found that meets the base budget and can be scaled to
                every scaling stage.
        """
        feasibility = self.family.feasibility
        pool = feasibility.draw(rng, _POOL)
        if not len(pool):
            raise UsageError(feasibility.explain_empty((Scaling(),), rng))
        masks = admitted(feasibility, pool)
        can = np.all([mask.any(axis=0) for mask in masks], axis=0)
        if masks and not can.any():
            raise UsageError(feasibility.explain_unscalable(pool))
        pool = pool[can] if masks else pool
        number = self._compared([mask[:, can] for mask in masks], record.left)
        if not number:
            return most_admitted(feasibility, pool)
        chosen = [Scaling()]
        for j, mask in enumerate(masks, start=1):
            best = yield from self._best_option(record, j, pool[:number], mask[:, can])
            chosen.append(best)
        return tuple(chosen)

    def _compared(self, masks: Sequence[NDArray[np.bool_]], left: float) -> int:
        """Base models to compare: of limited evaluations they may take half."""
        weights = self.family.weights[1:]
        numbers = [mask.sum(axis=0) for mask, weight in zip(masks, weights, strict=True) if weight]
        if not numbers or left == math.inf:
            return self.num_base_models
        total = np.cumsum(np.sum(numbers, axis=0))
        return min(self.num_base_models, int((total <= left / 2).sum()))

    def _best_option(
        self, record: Record, scaling_stage: int, bases: Genes, masks: NDArray[np.bool_]
    ) -> Steps[Scaling]:
        """The scaling with the largest effect on the fixed set.

        With a base model that cannot be scored under it a scaling is as one that is not admitted,
        and with none that can it is left out.
        """
        scalings = self.family.feasibility.distinct_scalings(scaling_stage)
        pairs = [(s, b) for b in range(len(bases)) for s in np.flatnonzero(masks[:, b])]
        effects = dict.fromkeys((s for s, _ in pairs), Fraction(0))
        if self.family.weights[scaling_stage]:
            archs = [self.family.space.decode(bases[b], scalings[s]) for s, b in pairs]
            scores = yield Batch(archs)
            known = zip(pairs, scores, strict=True)
            values = {pair: score.value for pair, score in known if score is not None}
            if not values:
                raise UsageError(f'scaling stage {scaling_stage}: {record.explain_failures()}')
            effects = dict.fromkeys((s for s, _ in values), Fraction(0))
            for b in {base for _, base in values}:
                own = {s: value for (s, base), value in values.items() if base == b}
                mean = sum(own.values(), Fraction(0)) / len(own)
                for s, value in own.items():
                    effects[s] += (value - mean) / len(bases)
        return scalings[min(effects, key=lambda s: (-effects[s], s))]

    # ------------------------------------------------------------------ given a base

    def given_base(
        self,
        record: Record,
        genes: Genes,
        present: Strategy | None = None,
        preselection: Preselection | None = None,
    ) -> Steps[Strategy]:
        """Chooses, per scaling stage, the best feasible scaling of one base model.

        The present scaling takes part, so that the fitness cannot fall. Equal scores: the lower
        cost wins, then the present one, then the first of the config. A scaling stage of weight
        0 keeps its present scaling.

        Args:
            record: What is known.
            genes: The base model, shape (genes,).
            present: The strategy so far.
            preselection: Predicts scalings; the most promising ones are scored. None for all.

        Raises:
            ValueError: A scaling stage has no feasible scaling of this base model, or none of
                them can be scored.
        """
        family, feasibility = self.family, self.family.feasibility
        options = {}
        for j in range(1, len(family.space.scaling_stages)):
            current = present[j] if present is not None else None
            options[j] = feasibility.scalings_of(genes, j, current)
        is_predicted = preselection is not None and preselection.is_ready
        if is_predicted:
            options = self._promising(record, options, preselection)
        chosen = [Scaling()]
        for j, own in options.items():
            if not family.weights[j]:
                chosen.append(own[0][0])
                continue
            later = [options[i] for i in options if i > j and family.weights[i]]
            share = None
            if not is_predicted:
                share = math.inf if preselection is None else _UNPREDICTED
            own = _within(record, own, later, share)
            scores = yield from self._scores([arch for _, arch in own])
            row = np.atleast_2d(genes)
            if not any(scores):
                raise UsageError(f'scaling stage {j}: {record.explain_failures()}')
            order = [
                (-score.value, feasibility.cost(row, scaling)[0].item(), i)
                for i, (score, (scaling, _)) in enumerate(zip(scores, own, strict=True))
                if score is not None
            ]
            chosen.append(own[min(order)[-1]][0])
        return tuple(chosen)

    def _promising(self, record: Record, options: Options, preselection: Preselection) -> Options:
        """Of all scaling stages what is known, and the most promising of what is not.

        Their number is four times that of the scaling stages that are scored: a stage may get more
        of them than another.
        """
        gains = []
        for j, own in options.items():
            archs = [arch for _, arch in own]
            mean, deviation = preselection.predict(archs)
            known = [place for place, arch in enumerate(archs) if arch in record.scores]
            best = max((mean[place] for place in known), default=mean.min())
            weight = float(self.family.weights[j])
            hoped = weight * (mean + EXPLORATION * deviation - best)
            gains += [(-hoped[i], j, i) for i in range(len(own)) if i not in known]
        limit = _PROMISING * len(self.family.scored_stages)
        taken = {(j, i) for _, j, i in sorted(gains)[:limit]}
        return {
            j: [
                option
                for i, option in enumerate(own)
                if not i or (j, i) in taken or option[1] in record.scores
            ]
            for j, own in options.items()
        }

    def _scores(self, archs: Sequence[Arch]) -> Steps[list[Score | None]]:
        """Scores the options of a scaling stage, or drops those that cannot be the best."""
        if not self.halving:
            return (yield Batch(archs))
        scores = yield Batch(archs[:1])
        for start in range(1, len(archs), _OPTIONS_AT_ONCE):
            batch = archs[start : start + _OPTIONS_AT_ONCE]
            best = max((score.value for score in scores if score is not None), default=0)
            scores += yield Batch(batch, [best] * len(batch))
        return scores


def _within(
    record: Record,
    options: list[tuple[Scaling, Arch]],
    later: Sequence[list[tuple[Scaling, Arch]]],
    share: float | None,
) -> list[tuple[Scaling, Arch]]:
    """The options of a scaling stage that a search may still score, and those that it has.

    Args:
        record: What the search has asked for, and what it may.
        options: Of the scaling stage.
        later: Of those that come after it; each must be left one.
        share: With it all stages get an equal share, from all over their options, but at most
            this; else the first ones are taken.
    """
    new = [option for option in options if record.is_new(option[1])]
    unknown = [own for own in later if all(record.is_new(arch) for _, arch in own)]
    left = record.left - len(unknown)
    share = len(new) if share is None else max(min(share, left // (len(later) + 1)), 1)
    if share < len(new):
        places = np.linspace(0, len(new) - 1, int(share)).round().astype(int)
        new = [new[place] for place in dict.fromkeys(places.tolist())]
    allowed = new if left >= len(new) else new[: max(int(left), 0)]
    return [option for option in options if option in allowed or not record.is_new(option[1])]
