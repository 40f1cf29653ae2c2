"""Evolution of the base model: under a strategy, or towards one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from mmscale.arch.checks import integer, number
from mmscale.errors import UsageError
from mmscale.search.family import Candidate, FamilyFitness, Proposal
from mmscale.search.feasibility import Strategy, noun
from mmscale.search.preselection import Preselection
from mmscale.search.promising import PARENTS, Promising
from mmscale.search.proposing import Proposer
from mmscale.search.record import Record
from mmscale.search.result import Generation, OnStep
from mmscale.search.schedule import flag
from mmscale.search.searcher import Steps


@dataclass(frozen=True)
class Round:
    """What one of the evolutions of a search starts from.

    Attributes:
        rng: Source of randomness.
        elites: Survivors of an evolution under another strategy. They keep their scalings, and
            take part under those of this strategy too.
        promising: Chooses children by prediction; None for no such thing.
        title: What progress reports and generations call this evolution.
        number: Of the round it belongs to.
        mutations: Expected number of gene changes of a child, in the place of that of the
            settings.
        on_step: Called with every generation.
    """

    rng: np.random.Generator
    elites: Sequence[Candidate] = ()
    promising: Promising | None = None
    title: str = 'base evolution'
    number: int = 1
    mutations: float | None = None
    on_step: OnStep | None = None


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
    these, as they are predicted then, all are. Where the evaluations are limited, the first two
    fifths of them go to cheapest networks alone.

    Args:
        family: Scores base models under a strategy.
        population: Number of survivors and of children of a generation, at least 1.
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
        integer('population', population, 1)
        integer('generations', generations, 1)
        number('mutations', mutations, above=0)
        self.family = family
        self.population = population
        self.generations = generations
        self.mutations = mutations
        self.halving = flag('halving', halving)
        self._proposer = Proposer(family, is_target)

    # ------------------------------------------------------------------ the evolution

    def promising(self, record: Record, preselection: Preselection) -> Promising:
        """What chooses the proposals of a search's evolutions by prediction."""
        return Promising(self._proposer, preselection, record, self.population)

    def steps(self, record: Record, strategy: Strategy, own: Round) -> Steps[Evolved]:
        """Evolves base models, until the generations or the evaluations are used up.

        Args:
            record: What is known.
            strategy: One Scaling per scaling stage.
            own: What this evolution starts from.

        Raises:
            ValueError: No base model was found that meets the budgets, or none can be scored.
        """
        rng, promising = own.rng, own.promising
        mutations = self.mutations if own.mutations is None else own.mutations
        most = self.population * (1 if promising is None else PARENTS)
        survivors = _best(own.elites, most)
        seen = {np.array(c.genotype.genes, dtype=np.int64).tobytes() for c in survivors}
        history: list[Fraction] = []
        if promising is not None and not survivors:
            record.step = f'{own.title}, first networks'
            yield from promising.explore(strategy, rng, mutations)
        for generation in range(self.generations):
            record.step = f'{own.title}, generation {generation + 1} of {self.generations}'
            scored: list[Candidate] = []
            correlation = None
            # As long as none of a generation can be scored another one is proposed.
            while not scored:
                if promising is not None:
                    proposals = yield from promising.choose(
                        survivors, strategy, rng, seen, mutations
                    )
                else:
                    is_new = bool(own.elites) and not generation
                    proposals = self._children(survivors, is_new, strategy, rng, seen, mutations)
                if not proposals and not survivors:
                    raise UsageError(
                        f'{record.step}: {record.explain_failures()}'
                        if record.failed
                        else self._proposer.explain_nothing(self.population, strategy, rng)
                    )
                proposals = affordable(self.family, record, proposals)
                if not proposals:
                    break
                seen.update(np.array(one.genes, dtype=np.int64).tobytes() for one in proposals)
                # An equal fitness may still survive by its cost or its genes.
                full = len(survivors) == most
                least = survivors[-1].fitness if self.halving and full else None
                predicted = {} if promising is None else promising.predicted(proposals)
                scored = yield from self.family.candidates(record, proposals, least)
                if promising is not None and predicted and scored:
                    pairs = [(predicted[c.proposal], float(c.fitness)) for c in scored]
                    correlation = promising.preselection.compare(*zip(*pairs, strict=True))
                if survivors:
                    break
            survivors = _best([*survivors, *scored], most)
            if not survivors:
                raise UsageError(
                    f'{record.step}: evaluations={record.limit} are used up, and no '
                    f'{noun(self.family.space)} was scored'
                )
            if not proposals:
                break
            history.append(survivors[0].fitness)
            record.best = survivors[0].fitness
            if own.on_step is not None:
                population = tuple((c.cost, c.fitness) for c in survivors)
                own.on_step(
                    Generation(
                        own.title,
                        own.number,
                        generation + 1,
                        record.evaluations,
                        population,
                        correlation,
                    )
                )
        return Evolved(tuple(survivors), tuple(history))

    def _children(
        self,
        survivors: Sequence[Candidate],
        is_new: bool,
        strategy: Strategy,
        rng: np.random.Generator,
        seen: set[bytes],
        mutations: float,
    ) -> list[Proposal]:
        """A generation without predictions.

        Args:
            survivors: The best candidates so far, the best first.
            is_new: Whether the survivors have not taken part under this strategy yet.
            strategy: One Scaling per scaling stage.
            rng: Source of randomness.
            seen: Bytes of genotypes that the evolution has scored; what is proposed is added.
            mutations: Expected number of gene changes of a child.
        """
        limit, proposer = self.population, self._proposer
        parents = [survivor.proposal for survivor in survivors]
        children = proposer.children(parents, limit, strategy, rng, seen, mutations)
        if not is_new:
            return children
        genes = np.array([c.genotype.genes for c in survivors], dtype=np.int64)
        known = {c.proposal for c in survivors}
        again = [one for one in proposer.scaled(genes, strategy) if one not in known]
        return [*again, *children][:limit]


def _best(candidates: Sequence[Candidate], limit: int) -> list[Candidate]:
    """The best candidates, of each base model one."""
    kept: dict[tuple[int, ...], Candidate] = {}
    for candidate in sorted(candidates, key=lambda c: c.order):
        kept.setdefault(candidate.genotype.genes, candidate)
    return list(kept.values())[:limit]


def affordable(
    family: FamilyFitness, record: Record, proposals: Sequence[Proposal]
) -> list[Proposal]:
    """The first proposals that a search may still score.

    Args:
        family: The fitness.
        record: What the search has asked for, and what it may.
        proposals: Families, those that matter most first.
    """
    asked: set[str] = set()
    taken = []
    for proposal in proposals:
        new = {arch.digest for arch in family.archs(proposal)} - record.requested - asked
        if len(asked) + len(new) <= record.left:
            asked |= new
            taken.append(proposal)
    return taken
