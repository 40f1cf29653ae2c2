"""What a search is to its caller: what it reports on the way, and the result at its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any, Protocol

from mmscale.arch import Arch, Genotype, Scaling
from mmscale.arch.arch import aligned
from mmscale.cost import Cost
from mmscale.search.entry import Score
from mmscale.search.family import FamilyFitness
from mmscale.search.feasibility import Strategy
from mmscale.search.record import Record
from mmscale.search.scoring import Scorer
from mmscale.search.searcher import Steps
from mmscale.search.varied import spoken

SCHEMA = 1


@dataclass(frozen=True)
class ChainStep:
    """One step of the Markov chain.

    Attributes:
        kind: ``initial strategy``, ``base evolution``, ``scaling search``, ``random family`` or
            ``random network``.
        round: From 1 on; 0 is the initial strategy.
        base: The base model after the step, or None if there is none yet.
        strategy: The strategy after the step.
        fitness: Fitness of base and strategy, or None without a base.
        cost: Cost of the base model, in units of the budget, or None without a base.
        evaluations: Distinct Archs of the search so far.
        history: Best fitness of each generation of a base evolution.
    """

    kind: str
    round: int
    base: Genotype | None
    strategy: Strategy
    fitness: Fraction | None
    cost: int | None
    evaluations: int
    history: tuple[Fraction, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns the step as plain JSON data."""
        return {
            'kind': self.kind,
            'round': self.round,
            'base': None if self.base is None else list(self.base.genes),
            'strategy': [scaling.to_json() for scaling in self.strategy],
            'fitness': None if self.fitness is None else float(self.fitness),
            'cost': self.cost,
            'evaluations': self.evaluations,
            'history': [float(fitness) for fitness in self.history],
        }


@dataclass(frozen=True)
class Generation:
    """The survivors of one generation of a base evolution.

    Attributes:
        step: What the evolution is part of, for example ``round 1 of 8, base evolution``.
        round: Its round, from 1 on.
        number: Of the generation, from 1 on.
        evaluations: Distinct Archs of the search so far.
        population: Cost, in units of the budget, and fitness of every survivor, the best first.
        rank_correlation: Of the fitness that was predicted before the generation was scored with
            that which was measured; None without preselection.
    """

    step: str
    round: int
    number: int
    evaluations: int
    population: tuple[tuple[int, Fraction], ...]
    rank_correlation: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the generation as plain JSON data."""
        predicted = {}
        if self.rank_correlation is not None:
            predicted = {'rank_correlation': round(self.rank_correlation, 4)}
        return {
            'kind': 'generation',
            'step': self.step,
            'round': self.round,
            'number': self.number,
            'evaluations': self.evaluations,
            'population': [[cost, float(fitness)] for cost, fitness in self.population],
            **predicted,
        }


OnStep = Callable[[ChainStep | Generation], None]
"""Called with every event of a search, in their order, on every rank."""


@dataclass(frozen=True)
class FamilyMember:
    """The network of one scaling stage, and the base model it is scaled from.

    It has no score if it is of a scaling stage of weight 0 and could not be scored.
    """

    scaling_stage: int
    base: Genotype
    scaling: Scaling
    arch: Arch
    cost: Cost
    score: Score | None

    def to_json(self) -> dict[str, Any]:
        """Returns the network as plain JSON data."""
        return {
            'scaling_stage': self.scaling_stage,
            'genes': list(self.base.genes),
            'scaling': self.scaling.to_json(),
            'cost': asdict(self.cost),
            'score': None if self.score is None else asdict(self.score),
            'arch': self.arch.to_json(),
        }


@dataclass(frozen=True)
class SearchResult:
    """Outcome of a search: equal for equal settings, seed and scores, however it was run.

    Attributes:
        base: The base model.
        family: The networks of all scaling stages, the base model's first; of scaling stage 0
            alone where the search was for no other.
        fitness: Weighted mean of their scores.
        chain: The steps that led here.
        evaluations: Distinct Archs that were scored.
        failed: Distinct Archs that could not be scored.
        seed: Seed of the search, or None if it has no randomness.
        settings: Budget, schedule and weights, plain JSON data.
        details: What else this kind of search has to tell, plain JSON data.
        varied: What the space chooses beside depths and kernels, see
            :func:`mmscale.search.varied.varied`; it is printed.
    """

    base: Genotype
    family: tuple[FamilyMember, ...]
    fitness: Fraction
    chain: tuple[ChainStep, ...]
    evaluations: int
    failed: int
    seed: int | None
    settings: dict[str, Any]
    details: dict[str, Any] = field(default_factory=dict)
    varied: tuple[str, ...] = ()

    @property
    def networks(self) -> dict[str, Arch]:
        """The networks of the family, by the names of their files."""
        return {f'scaling_stage_{member.scaling_stage}': member.arch for member in self.family}

    @property
    def strategy(self) -> Strategy:
        """One Scaling per scaling stage."""
        return tuple(member.scaling for member in self.family)

    def to_json(self) -> dict[str, Any]:
        """Returns the result as plain JSON data, without times, hosts and paths."""
        return {
            'schema': SCHEMA,
            'base': {'genes': list(self.base.genes), 'arch': self.family[0].arch.to_json()},
            'scaling_stages': [member.to_json() for member in self.family],
            'fitness': float(self.fitness),
            'evaluations': self.evaluations,
            'failed': self.failed,
            'chain': [step.to_json() for step in self.chain],
            'seed': self.seed,
            'settings': self.settings,
            'details': self.details,
        }

    def __str__(self) -> str:
        seed = '' if self.seed is None else f', seed {self.seed}'
        failed = f' and {self.failed:,} networks that could not be scored' if self.failed else ''
        lines = [
            f'Search result: fitness {float(self.fitness):.4f} after {self.evaluations:,} '
            f'evaluations{failed}{seed}'
        ]
        is_scaled = len(self.family) > 1
        noun = 'base model' if is_scaled else 'network'
        lines += [f'  {noun}: {line}' for line in spoken(self.family[0].arch, self.varied)]
        known = [step.fitness for step in self.chain if step.fitness is not None]
        if known:
            lines.append(
                f'  chain: {len(self.chain)} steps, fitness {float(known[0]):.4f} to '
                f'{float(known[-1]):.4f}'
            )
        rows = [
            (
                *('scaling stage', 'depth', 'width', 'px', 'blocks', 'flops', 'of base'),
                *('params', 'acts', 'score'),
            )
        ]
        for member in self.family:
            scaling, cost = member.scaling, member.cost
            ratio = cost.flops / self.family[0].cost.flops
            rows.append(
                (
                    *(str(member.scaling_stage), f'{scaling.depth:g}', f'{scaling.width:g}'),
                    *(str(member.arch.resolution), str(len(member.arch.blocks))),
                    *(f'{cost.flops:,}', f'{ratio:.2f}', f'{cost.params:,}', f'{cost.acts:,}'),
                    'none' if member.score is None else str(member.score),
                )
            )
        if not is_scaled:
            unscaled = (3, 4, 5, 7, 8, 9)
            rows = [tuple(row[i] for i in unscaled) for row in rows]
        return '\n'.join([*lines, aligned(rows)])


class Result(Protocol):
    """What a search finds; its :meth:`__str__` is for the log."""

    @property
    def fitness(self) -> Fraction:
        """The number that stands for it."""

    @property
    def networks(self) -> dict[str, Arch]:
        """The networks that get files, by the names of these."""

    @property
    def evaluations(self) -> int:
        """Distinct Archs that were scored."""

    def to_json(self) -> dict[str, Any]:
        """Returns the result as plain JSON data: ``result.json``."""


class Search(Protocol):
    """A search, built and checked; nothing is evaluated before it runs.

    Such a class, registered in ``mmscale.registry.SEARCHES``, is all that a new search needs.
    What its constructor names of the following comes from the search's problem, all else from
    the config: ``family`` (:class:`FamilyFitness`: budgets and weights), ``table``
    (:class:`mmscale.cost.CostTable`: costs of the space) and ``seed``.
    """

    @property
    def family(self) -> FamilyFitness | None:
        """Budgets and weights of the family that it searches; None for a search without."""

    @property
    def most_evaluations(self) -> int:
        """Upper bound of the distinct Archs that :meth:`run` evaluates."""

    def steps(self, record: Record, on_step: OnStep | None = None) -> Steps[Result]:
        """Searches from the start; what the archive knows is not asked for again.

        Args:
            record: What is known.
            on_step: Called with every event of the search.

        Returns:
            Batches of Archs for a :class:`mmscale.search.Searcher`, and at last the result.
        """

    def run(self, scorer: Scorer, on_step: OnStep | None = None) -> Result:
        """Searches with a scorer, see :meth:`steps`."""
