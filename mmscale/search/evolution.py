"""Evolution of the base model: under a strategy, or towards one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from mmscale.arch import Arch, Scaling
from mmscale.arch.checks import integer, number
from mmscale.arch.genes import Genes
from mmscale.errors import UsageError
from mmscale.search.family import Candidate, FamilyFitness, Proposal
from mmscale.search.feasibility import Strategy
from mmscale.search.operators import crossover, mutate, take_new, tournament
from mmscale.search.preselection import EXPLORATION, Preselection
from mmscale.search.record import Batch, Record
from mmscale.search.result import Generation, OnStep
from mmscale.search.schedule import flag
from mmscale.search.searcher import Steps
from mmscale.search.targets import draw_scalable, nearest, options

_TOURNAMENT = 2
_ATTEMPTS = 8
# With preselection, for every one that is scored: so many parents, so many proposals, so many of
# them at random, and so many of the best get scalings of their own.
_PARENTS = 4
_PROPOSALS = 16
_RANDOM_SHARE = 0.25
_RESCALED = 2
# With preselection and several scaling stages: so many are screened by their cheapest network for
# every one of which all networks are scored.
_SCREENED = 3


@dataclass(frozen=True)
class Evolved:
    """Outcome of a base evolution.

    Attributes:
        population: Survivors, the best first.
        history: Best fitness after every generation; shorter than the schedule if no new
            feasible base model could be found, or if the evaluations are used up.
    """

    population: tuple[Candidate, ...]
    history: tuple[Fraction, ...]


class BaseEvolution:
    """(mu + lambda) evolution with lambda equal to mu, over canonical, feasible base models.

    Every child is new to the evolution: it comes from two tournament winners by two-point
    crossover and mutation; what does not meet the budgets is repaired or dropped, never scored;
    what is missing then is drawn at random. If nothing new is found the evolution ends early.

    With preselection many more children are proposed, and random ones beside them. A surrogate
    that is fitted to all scores so far predicts their fitness; of those whose prediction and half
    its standard deviation add up to the most the cheapest network is scored, and of the best of
    these, as they are predicted then, all are.

    Args:
        family: Scores base models under a strategy.
        population: Number of survivors and of children of a generation, at least 2.
        generations: Number of generations, the initial population included, at least 1.
        mutations: Expected number of gene changes of a child.
        halving: Whether to stop evaluating a child once it certainly cannot survive; who
            survives is the same.
        is_target: Whether the strategy is a target, to which each base model takes the nearest
            scalings that are feasible for it; else it must be feasible as it is.

    Raises:
        ValueError: A setting is not allowed.
    """

    def __init__(
        self,
        family: FamilyFitness,
        population: int = 64,
        generations: int = 40,
        mutations: float = 1.0,
        halving: bool = False,
        is_target: bool = False,
    ) -> None:
        integer('population', population, 2)
        integer('generations', generations, 1)
        number('mutations', mutations, above=0)
        self.family = family
        self.population = population
        self.generations = generations
        self.mutations = mutations
        self.halving = flag('halving', halving)
        self.is_target = is_target

    # ------------------------------------------------------------------ the evolution

    def steps(
        self,
        record: Record,
        strategy: Strategy,
        rng: np.random.Generator,
        elites: Sequence[Candidate] = (),
        preselection: Preselection | None = None,
        evaluations: int | None = None,
        title: str = 'base evolution',
        round_number: int = 1,
        on_step: OnStep | None = None,
        mutations: float | None = None,
    ) -> Steps[Evolved]:
        """Evolves base models.

        Args:
            record: What is known.
            strategy: One Scaling per scaling stage.
            rng: Source of randomness.
            elites: Survivors of an evolution under another strategy. They keep their scalings, and
                take part under those of this strategy too.
            preselection: Predicts children before they are scored; None for no such thing.
            evaluations: Of the whole search at most; None for as many as the generations take.
            title: What progress reports and generations call this evolution.
            round_number: The round it belongs to.
            on_step: Called with every generation.
            mutations: In the place of those of the settings.

        Raises:
            ValueError: No base model was found that meets the budgets, or none can be scored.
        """
        mutations = self.mutations if mutations is None else mutations
        limit = self.population * (1 if preselection is None else _SCREENED)
        most = self.population * (1 if preselection is None else _PARENTS)
        survivors = _best(elites, most)
        seen = {np.array(c.genotype.genes, dtype=np.int64).tobytes() for c in survivors}
        history: list[Fraction] = []
        # Families of which one network was scored.
        screened: list[Proposal] = []
        for generation in range(self.generations):
            if survivors and preselection is not None and preselection.is_ready:
                proposals = self._chosen(
                    survivors, screened, strategy, rng, seen, mutations, preselection
                )
            elif survivors:
                proposals = self._children(survivors, limit, strategy, rng, seen, mutations)
            else:
                proposals = self._drawn(limit, strategy, rng, seen)
            if elites and not generation and preselection is None:
                proposals = [*self._under(strategy, survivors), *proposals][: self.population]
            if not proposals and not survivors:
                raise UsageError(self._explain(strategy, rng))
            record.step = f'{title}, generation {generation + 1} of {self.generations}'
            if preselection is not None and len(self.family.scored_stages) > 1:
                yield Batch(self._screens(record, proposals, evaluations))
                screened = proposals
                proposals = self._promising(proposals, preselection, self.population)
            proposals = affordable(self.family, record, proposals, evaluations)
            if not proposals:
                break
            seen.update(np.array(one.genes, dtype=np.int64).tobytes() for one in proposals)
            # An equal fitness may still survive by its cost or its genes.
            full = len(survivors) == most
            least = survivors[-1].fitness if self.halving and full else None
            predicted = self._predicted(proposals, preselection)
            scored = yield from self.family.candidates(record, proposals, least)
            correlation = None
            if predicted:
                pairs = [(predicted[c.proposal], float(c.fitness)) for c in scored]
                correlation = preselection.compare(*zip(*pairs, strict=True)) if pairs else None
            survivors = _best([*survivors, *scored], most)
            if not survivors:
                raise UsageError(f'{record.step}: {record.explain_failures()}')
            history.append(survivors[0].fitness)
            record.best = survivors[0].fitness
            if on_step is not None:
                population = tuple((c.cost, c.fitness) for c in survivors)
                on_step(
                    Generation(
                        title,
                        round_number,
                        generation + 1,
                        record.evaluations,
                        population,
                        correlation,
                    )
                )
        return Evolved(tuple(survivors), tuple(history))

    def _explain(self, strategy: Strategy, rng: np.random.Generator) -> str:
        feasibility = self.family.feasibility
        if not self.is_target:
            return feasibility.explain_empty(strategy, rng)
        pool = feasibility.draw(rng, _ATTEMPTS * self.population)
        if not len(pool):
            return feasibility.explain_empty((Scaling(),), rng)
        return feasibility.explain_unscalable(pool)

    # ------------------------------------------------------------------ what may be scored

    def _scaled(self, genes: Genes, strategy: Strategy) -> list[Proposal]:
        """Base models with their scalings; without those that do not meet the budgets."""
        feasibility = self.family.feasibility
        if self.is_target:
            genes = genes[feasibility.base_feasible(genes)]
            strategies = nearest(feasibility, genes, strategy)
        else:
            genes = genes[feasibility.feasible(genes, strategy)]
            strategies = [strategy] * len(genes)
        return [
            Proposal(tuple(row.tolist()), own)
            for row, own in zip(genes, strategies, strict=True)
            if own is not None
        ]

    def _under(self, strategy: Strategy, survivors: Sequence[Candidate]) -> list[Proposal]:
        """Survivors of another strategy under this one, where that is something new."""
        genes = np.array([c.genotype.genes for c in survivors], dtype=np.int64)
        known = {c.proposal for c in survivors}
        return [proposal for proposal in self._scaled(genes, strategy) if proposal not in known]

    def _drawn(
        self, limit: int, strategy: Strategy, rng: np.random.Generator, seen: set[bytes]
    ) -> list[Proposal]:
        feasibility = self.family.feasibility
        if self.is_target:
            genes = draw_scalable(feasibility, rng, limit, seen)
        else:
            genes = feasibility.draw(rng, limit, strategy, seen)
        return self._scaled(genes, strategy)

    def _children(
        self,
        parents: Sequence[Candidate],
        limit: int,
        strategy: Strategy,
        rng: np.random.Generator,
        seen: set[bytes],
        mutations: float,
    ) -> list[Proposal]:
        """New proposals, and random ones where too few are bred."""
        children = self._bred(parents, limit, strategy, rng, seen, mutations)
        return children + self._drawn(limit - len(children), strategy, rng, seen)

    def _chosen(
        self,
        parents: Sequence[Candidate],
        screened: Sequence[Proposal],
        strategy: Strategy,
        rng: np.random.Generator,
        seen: set[bytes],
        mutations: float,
        preselection: Preselection,
    ) -> list[Proposal]:
        """The most promising of many new proposals, and of those that were screened before."""
        is_scaled = self.is_target and self.family.is_scaled
        limit = self.population * (_SCREENED if len(self.family.scored_stages) > 1 else 1)
        tried = set(seen)
        number = _PROPOSALS * self.population
        pool = self._bred(parents, number, strategy, rng, tried, mutations, repairs=False)
        pool += self._drawn(int(_RANDOM_SHARE * number), strategy, rng, tried)
        if not pool:
            pool = self._bred(parents, limit, strategy, rng, tried, mutations)
        pool += screened
        pool = [one for one in pool if preselection.is_new(self.family.archs(one))]
        chosen = self._promising(pool, preselection, _RESCALED * limit if is_scaled else limit)
        if is_scaled:
            chosen = self._promising(self._rescaled(chosen, preselection), preselection, limit)
        return chosen

    def _bred(
        self,
        parents: Sequence[Candidate],
        limit: int,
        strategy: Strategy,
        rng: np.random.Generator,
        seen: set[bytes],
        mutations: float,
        repairs: bool = True,
    ) -> list[Proposal]:
        feasibility, space = self.family.feasibility, self.family.space
        budgets = (Scaling(),) if self.is_target else strategy
        pool = np.array([parent.genotype.genes for parent in parents], dtype=np.int64)
        children: list[Proposal] = []
        for _ in range(_ATTEMPTS):
            missing = limit - len(children)
            if not missing:
                break
            first = pool[tournament(len(pool), missing, _TOURNAMENT, rng)]
            second = pool[tournament(len(pool), missing, _TOURNAMENT, rng)]
            offspring = crossover(space, first, second, rng)
            offspring = mutate(space, offspring, rng, mutations)
            if repairs:
                offspring = feasibility.repair(offspring, budgets, rng)
            else:
                offspring = offspring[feasibility.feasible(offspring, budgets)]
            children += self._scaled(take_new(offspring, seen, missing), strategy)
        return children

    # ------------------------------------------------------------------ preselection

    def _screens(
        self, record: Record, proposals: Sequence[Proposal], evaluations: int | None
    ) -> list[Arch]:
        """The cheapest networks of families: with them the others are predicted better."""
        archs = [self.family.archs(proposal)[0] for proposal in proposals]
        if evaluations is None:
            return archs
        # What is left must do for a family whose others are scored too.
        left = evaluations - record.evaluations - len(self.family.scored_stages) + 1
        new = [arch for arch in dict.fromkeys(archs) if arch.digest not in record.requested]
        return new[: max(left, 0)]

    def _predict(
        self, proposals: Sequence[Proposal], preselection: Preselection
    ) -> tuple[np.ndarray, np.ndarray]:
        """Predicted fitness of families, and its standard deviation, each of shape (n,)."""
        weights = np.array([float(self.family.weights[j]) for j in self.family.scored_stages])
        archs = [arch for proposal in proposals for arch in self.family.archs(proposal)]
        mean, deviation = preselection.predict(archs)
        # What is not known of a family is not known of all its networks.
        shares = weights / weights.sum()
        return tuple(each.reshape(-1, len(weights)) @ shares for each in (mean, deviation))

    def _predicted(
        self, proposals: Sequence[Proposal], preselection: Preselection | None
    ) -> dict[Proposal, float]:
        if preselection is None or not preselection.is_ready:
            return {}
        mean, _ = self._predict(proposals, preselection)
        return dict(zip(proposals, mean.tolist(), strict=True))

    def _promising(
        self, proposals: Sequence[Proposal], preselection: Preselection, limit: int
    ) -> list[Proposal]:
        """The most promising ones, the best first; as they come where nothing is known."""
        if not preselection.is_ready:
            return list(proposals[:limit])
        mean, deviation = self._predict(proposals, preselection)
        order = np.argsort(-(mean + EXPLORATION * deviation), kind='stable')
        return [proposals[i] for i in order[:limit]]

    def _rescaled(
        self, proposals: Sequence[Proposal], preselection: Preselection
    ) -> list[Proposal]:
        """The same base models with the most promising scalings that are feasible for them."""
        family = self.family
        genes = np.array([proposal.genes for proposal in proposals], dtype=np.int64)
        strategies = [list(proposal.strategy) for proposal in proposals]
        for j in family.scored_stages[family.scored_stages[0] == 0 :]:
            own = options(family.feasibility, genes, j)
            pairs = [(i, scaling) for i, scalings in enumerate(own) for scaling in scalings]
            archs = [family.network(proposals[i].genes, scaling) for i, scaling in pairs]
            mean, deviation = preselection.predict(archs)
            hoped = mean + EXPLORATION * deviation
            # The best comes last, the first of equal ones.
            for place in np.argsort(-hoped, kind='stable')[::-1]:
                i, scaling = pairs[place]
                strategies[i][j] = scaling
        return [
            Proposal(proposal.genes, tuple(strategy))
            for proposal, strategy in zip(proposals, strategies, strict=True)
        ]


def _best(candidates: Sequence[Candidate], limit: int) -> list[Candidate]:
    """The best candidates, of each base model one."""
    kept: dict[tuple[int, ...], Candidate] = {}
    for candidate in sorted(candidates, key=lambda c: c.order):
        kept.setdefault(candidate.genotype.genes, candidate)
    return list(kept.values())[:limit]


def affordable(
    family: FamilyFitness,
    record: Record,
    proposals: Sequence[Proposal],
    evaluations: int | None,
) -> list[Proposal]:
    """The first proposals that a search may still score.

    Args:
        family: The fitness.
        record: What the search has asked for.
        proposals: Families, those that matter most first.
        evaluations: Distinct Archs that the search may score in all; None for any number.
    """
    if evaluations is None:
        return list(proposals)
    left = evaluations - record.evaluations
    asked: set[str] = set()
    taken = []
    for proposal in proposals:
        new = {arch.digest for arch in family.archs(proposal)} - record.requested - asked
        if len(asked) + len(new) <= left:
            asked |= new
            taken.append(proposal)
    return taken
