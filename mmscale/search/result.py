"""What a search is to its caller: what it reports on the way, and the result at its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any, Protocol

from mmscale.arch import Arch, Genotype, Scaling
from mmscale.arch.arch import aligned
from mmscale.cost import Cost
from mmscale.search.entry import Score
from mmscale.search.family import Candidate, FamilyFitness
from mmscale.search.feasibility import Strategy
from mmscale.search.noise import (
    WIDTH,
    neighbours_alike,
    score_text,
    shares_told_apart,
    standard_error,
    with_error,
)
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
            that which was measured, with those of generations before where this one is small;
            None without preselection, and of fewer than three.
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

    Attributes:
        scaling_stage: Of the network.
        base: The base model.
        scaling: What scales it.
        arch: The network.
        cost: Its cost.
        score: Its score in the search.
        final_score: On the images of the final round, if there was one and its score counts.
    """

    scaling_stage: int
    base: Genotype
    scaling: Scaling
    arch: Arch
    cost: Cost
    score: Score | None
    final_score: Score | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the network as plain JSON data."""
        final = {} if self.final_score is None else {'final_score': asdict(self.final_score)}
        return {
            'scaling_stage': self.scaling_stage,
            'genes': list(self.base.genes),
            'scaling': self.scaling.to_json(),
            'cost': asdict(self.cost),
            'score': None if self.score is None else asdict(self.score),
            **final,
            'arch': self.arch.to_json(),
        }


def _plain(candidate: Candidate) -> dict[str, Any]:
    """A candidate as plain JSON data."""
    return {
        'genes': list(candidate.genotype.genes),
        'strategy': [scaling.to_json() for scaling in candidate.strategy],
        'fitness': float(candidate.fitness),
    }


@dataclass(frozen=True)
class FinalRound:
    """The leaders of a search, which its images did not tell apart, scored on more.

    Attributes:
        images: So many.
        leaders: As the search scored them, the best of the final round first.
        fitness: Of each its fitness on these images.
    """

    images: int
    leaders: tuple[Candidate, ...]
    fitness: tuple[Fraction, ...]

    @property
    def alike(self) -> int:
        """How many of the other leaders are not told apart from the first."""
        first, *others = self.fitness
        return sum(not shares_told_apart(first, other, self.images) for other in others)

    def to_json(self) -> dict[str, Any]:
        """Returns the round as plain JSON data."""
        return {
            'images': self.images,
            'leaders': [
                {
                    **_plain(leader),
                    'final_fitness': float(fitness),
                    'final_error': standard_error(fitness, self.images),
                }
                for leader, fitness in zip(self.leaders, self.fitness, strict=True)
            ],
            'within_error': self.alike,
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
        runners_up: The next best families that the search has scored, the best first.
        counted: Whether scores count right answers, so that they have a binomial error.
        final: The round on more images that chose among the leaders, if there was one.
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
    runners_up: tuple[Candidate, ...] = ()
    counted: bool = True
    final: FinalRound | None = None

    @property
    def images(self) -> int | None:
        """How many images the scores are of; None where they count none."""
        totals = [member.score.total for member in self.family if member.score is not None]
        return min(totals) if totals and self.counted else None

    @property
    def fitness_error(self) -> float | None:
        """Standard error of the fitness, the largest that a mean of such shares can have."""
        return None if self.images is None else standard_error(self.fitness, self.images)

    @property
    def alike(self) -> tuple[Candidate, ...]:
        """The runners-up whose fitness is within the error of that of the family."""
        if self.images is None:
            return ()
        return tuple(
            one
            for one in self.runners_up
            if not shares_told_apart(one.fitness, self.fitness, self.images)
        )

    @property
    def stages_alike(self) -> tuple[tuple[int, int], ...]:
        """Scaling stages and the next ones, where the scores are within each other's error."""
        if self.images is None:
            return ()
        stages = [member.scaling_stage for member in self.family]
        alike = neighbours_alike([member.score for member in self.family])
        return tuple((stages[i], stages[i + 1]) for i in alike)

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
            'scaling_stages': [self._member(member) for member in self.family],
            'fitness': float(self.fitness),
            **self._noise(),
            'evaluations': self.evaluations,
            'failed': self.failed,
            'chain': [step.to_json() for step in self.chain],
            'seed': self.seed,
            'settings': self.settings,
            'details': self.details,
        }

    def _member(self, member: FamilyMember) -> dict[str, Any]:
        counted = member.score is not None and self.counted
        return {**member.to_json(), **({'error': member.score.error} if counted else {})}

    def _noise(self) -> dict[str, Any]:
        """What scores, fitness and runners-up tell of their differences, plain JSON data."""
        found: dict[str, Any] = {'runners_up': [_plain(one) for one in self.runners_up]}
        if self.final is not None:
            found['final'] = self.final.to_json()
        if self.images is None:
            return found if self.counted else {**found, 'counted': False}
        return {
            'fitness_error': self.fitness_error,
            'within_error': {
                'scaling_stages': [list(pair) for pair in self.stages_alike],
                'runners_up': len(self.alike),
            },
            **found,
        }

    def __str__(self) -> str:
        seed = '' if self.seed is None else f', seed {self.seed}'
        failed = f' and {self.failed:,} networks that could not be scored' if self.failed else ''
        lines = [
            f'Search result: fitness {with_error(self.fitness, self.fitness_error)} after '
            f'{self.evaluations:,} '
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
                    score_text(member.score, self.images is not None),
                )
            )
        if not is_scaled:
            unscaled = (3, 4, 5, 7, 8, 9)
            rows = [tuple(row[i] for i in unscaled) for row in rows]
        return '\n'.join([*lines, aligned(rows), *self._told(), *predicted_lines(self.details)])

    def _told(self) -> list[str]:
        """Lines of what is within the error, and of the final round."""
        lines = []
        if self.images is not None:
            alike = [f'scaling stages {one} and {other}' for one, other in self.stages_alike]
            if self.alike:
                alike.append(
                    f'this family and {len(self.alike)} of {len(self.runners_up)} runners-up'
                )
            line = f'  ± is {WIDTH} standard errors of {self.images:,} images'
            if alike:
                line += f', which do not tell apart {"; ".join(alike)}'
            lines.append(line)
        if self.final is not None:
            final = self.final
            error = standard_error(final.fitness[0], final.images)
            lines.append(
                f'  final round of {len(final.leaders)} leaders on {final.images:,} images: '
                f'fitness {with_error(final.fitness[0], error)}; of the others '
                f'{final.alike} are within the error'
            )
        return lines


def predicted_lines(details: Mapping[str, Any]) -> list[str]:
    """How well a search's candidates were predicted before they were scored, for people."""
    found = details.get('surrogate')
    if not found:
        return []
    correlation = found['rank_correlation']
    known = 'none' if correlation is None else f'{correlation:.2f}'
    return [
        f'  surrogate: {found["candidates"]} candidates were predicted before they were scored, '
        f'rank correlation {known}, mean error {found["mean_error"]:.4f}'
    ]


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
