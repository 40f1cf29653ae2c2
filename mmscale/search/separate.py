"""A search per scaling stage of its own: what a joint search is compared with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mmscale.arch.checks import integer
from mmscale.search.family import FamilyFitness
from mmscale.search.halves import EvolutionSearch
from mmscale.search.mcea import MCEA
from mmscale.search.record import Record
from mmscale.search.result import ChainStep, Generation, OnStep, SearchResult
from mmscale.search.schedule import RELEASED, checked_evaluations, uses_surrogate
from mmscale.search.scoring import Scorer
from mmscale.search.searcher import Steps


class SeparateSearch:
    """Searches the best network of every scaling stage for itself, each with its own base model.

    Scaling stage j is searched by an MCEA whose fitness counts it alone, within the budgets of it
    and of its base model; scaling stage 0 by the base evolution alone, with as many generations.
    What is found is no family, so its fitness is an upper reference of a joint search's, at the
    price of the evaluations, which the result counts per run.

    Args:
        family: As for :class:`MCEA`.
        population: As for :class:`MCEA`.
        generations: As for :class:`MCEA`.
        rounds: As for :class:`MCEA`.
        num_base_models: As for :class:`MCEA`.
        mutations: As for :class:`MCEA`.
        halving: As for :class:`MCEA`.
        evaluations: Of all runs together, an equal part for each; see :class:`MCEA`.
        surrogate: As for :class:`MCEA`; each run has its own, of the scores it has asked for.
        seed: As for :class:`MCEA`; every run has randomness of its own, derived from it.

    Raises:
        ValueError: A setting is not allowed.
    """

    def __init__(
        self,
        family: FamilyFitness,
        population: int | None = None,
        generations: int | None = None,
        rounds: int | None = None,
        num_base_models: int | None = None,
        mutations: float = 1.0,
        halving: bool = False,
        evaluations: int | None = None,
        surrogate: bool | None = None,
        seed: int = 0,
    ) -> None:
        integer('seed', seed, 0)
        stages = len(family.space.scaling_stages)
        checked_evaluations(evaluations, stages, halving)
        share = None if evaluations is None else evaluations // stages
        if evaluations is None:
            population = RELEASED.population if population is None else population
            generations = RELEASED.generations if generations is None else generations
            rounds = RELEASED.rounds if rounds is None else rounds
            bases = RELEASED.num_base_models
            num_base_models = bases if num_base_models is None else num_base_models
            integer('generations', generations, 1)
            integer('rounds', rounds, 1)
        self.family = family
        self.seed = seed
        self.settings = {
            'population': population,
            'generations': generations,
            'rounds': rounds,
            'num_base_models': num_base_models,
            'mutations': mutations,
            'halving': halving,
            'evaluations': share,
            'surrogate': uses_surrogate(surrogate, evaluations),
        }
        seeds = [
            int(np.random.SeedSequence([seed, j]).generate_state(1)[0]) for j in range(stages)
        ]
        self.runs: list[EvolutionSearch | MCEA] = [
            EvolutionSearch(
                family,
                None,
                population,
                generations * rounds if rounds and generations else generations,
                mutations,
                halving,
                share,
                surrogate=self.settings['surrogate'],
                seed=seeds[0],
            )
        ]
        self.runs += [
            MCEA(family.alone(j), seed=seeds[j], **self.settings) for j in range(1, stages)
        ]
        self.settings['evaluations'] = evaluations

    @property
    def most_evaluations(self) -> int:
        """Upper bound of the distinct Archs that :meth:`run` evaluates."""
        return sum(run.most_evaluations for run in self.runs)

    def steps(self, record: Record, on_step: OnStep | None = None) -> Steps[SearchResult]:
        """Searches scaling stage after scaling stage; what is known is not asked for again.

        Args:
            record: What is known.
            on_step: Called with every generation; the chains of the runs are in the result.

        Raises:
            ValueError: The budgets of a scaling stage leave no base model or no scaling.
        """
        evaluated: set[str] = set()
        failed: set[str] = set()

        def on_generation(step: ChainStep | Generation) -> None:
            if on_step is not None and isinstance(step, Generation):
                evaluations = len(evaluated | record.requested)
                on_step(replace(step, step=record.title + step.step, evaluations=evaluations))

        results = []
        for j, run in enumerate(self.runs):
            if self.family.is_scaled:
                record.title = f'scaling stage {j} of {len(self.runs) - 1}, '
            record.begin_part()
            results.append((yield from run.steps(record, on_generation)))
            evaluated |= record.requested
            failed |= record.failed
        record.title = ''
        record.requested, record.failed = evaluated, failed
        members = tuple(result.family[j] for j, result in enumerate(results))
        return SearchResult(
            base=members[0].base,
            family=members,
            fitness=self.family.mean([members[j].score for j in self.family.scored_stages]),
            chain=(),
            evaluations=record.evaluations,
            failed=len(record.failed),
            seed=self.seed,
            settings={**self.family.settings, **self.settings},
            details={
                'runs': [
                    {
                        'scaling_stage': j,
                        'evaluations': result.evaluations,
                        'fitness': float(result.fitness),
                        **result.details,
                        'chain': [step.to_json() for step in result.chain],
                    }
                    for j, result in enumerate(results)
                ]
            },
            varied=results[0].varied,
        )

    def run(self, scorer: Scorer, on_step: OnStep | None = None) -> SearchResult:
        """Searches with a scorer, see :meth:`steps`."""
        return scorer.drive(self.steps(scorer, on_step))
