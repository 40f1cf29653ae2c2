"""Base evolution under a fixed strategy, and the fitness it follows."""

import math
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from analytic_problem import (
    AnalyticEvaluator,
    all_genotypes,
    analytic_score,
    make_family,
    make_scorer,
    small_feasibility,
    small_space,
)

from mmscale.arch import Genotype, Scaling
from mmscale.search import (
    BaseEvolution,
    Candidate,
    EvolutionSearch,
    Round,
    ScalingSearch,
    StrategySearch,
)
from mmscale.search.family import Proposal
from mmscale.search.targets import nearest

# 193 base models meet the budgets under it.
STRATEGY = (Scaling(), Scaling(1.2, 1.2, 1.0), Scaling(1.4, 1.1, 1.5))


class CheckingEvaluator(AnalyticEvaluator):
    """Refuses every Arch that does not come from a feasible base model under STRATEGY."""

    def __init__(self):
        super().__init__()
        space, feasibility = small_space(), small_feasibility()
        genotypes = all_genotypes(space)
        self.feasible = genotypes[feasibility.feasible(genotypes, STRATEGY)]
        assert len(self.feasible) == 193
        self.allowed = {space.decode(row, s) for row in self.feasible for s in STRATEGY}

    def evaluate(self, arch):
        assert arch in self.allowed
        return super().evaluate(arch)


def under(genes, strategy=STRATEGY):
    return [Proposal(tuple(row.tolist()), strategy) for row in genes]


def evolve(scorer, evolution, strategy=STRATEGY, seed=0, **settings):
    return scorer.drive(evolution.steps(scorer, strategy, Round(rng(seed), **settings)))


def rng(seed=0):
    return np.random.default_rng(seed)


def test_candidates_sort_by_fitness_then_cost_then_genes():
    def candidate(fitness, cost, *genes):
        return Candidate(Genotype(genes), STRATEGY, Fraction(fitness), cost)

    ordered = [
        candidate(3, 9, 0, 1),
        candidate(2, 4, 7, 7),
        candidate(2, 5, 0, 2),
        candidate(2, 5, 1, 0),
    ]
    assert sorted(ordered[::-1], key=lambda c: c.order) == ordered


def test_fitness_is_the_exact_weighted_mean(tmp_path):
    evaluator = CheckingEvaluator()
    genes = evaluator.feasible[:3]
    for weights in ([0.1, 1, 2], [0, 1, 0.2]):
        scorer = make_scorer(tmp_path / str(weights), evaluator)
        candidates = scorer.drive(make_family(weights).candidates(scorer, under(genes)))
        exact = [Fraction(str(w)) for w in weights]
        for row, candidate in zip(genes, candidates, strict=True):
            archs = [small_space().decode(row, s) for s in STRATEGY]
            total = sum(w * analytic_score(a).value for w, a in zip(exact, archs, strict=True))
            assert candidate.fitness == total / sum(exact)
            assert candidate.genotype.genes == tuple(row)


def test_a_scaling_stage_of_weight_0_is_not_evaluated(tmp_path):
    evaluator = CheckingEvaluator()
    scorer = make_scorer(tmp_path, evaluator)
    scorer.drive(make_family([0, 1, 0]).candidates(scorer, under(evaluator.feasible[:4])))
    expected = [small_space().decode(row, STRATEGY[1]).digest for row in evaluator.feasible[:4]]
    assert sorted(evaluator.digests) == sorted(expected)


def test_infeasible_base_models_cannot_be_scored(tmp_path):
    genes = all_genotypes(small_space())[:4]
    scorer = make_scorer(tmp_path)
    with pytest.raises(ValueError, match='must not be scored'):
        scorer.drive(make_family().candidates(scorer, under(genes)))


@pytest.mark.parametrize('weights', [[1, 1], [1, 1, -1], [0, 0, 0], [1, 1, float('inf')], 'abc'])
def test_weights_are_checked(weights):
    with pytest.raises(ValueError, match='weights'):
        make_family(weights)


def test_no_infeasible_or_repeated_candidate_is_scored_and_elites_survive(tmp_path):
    evaluator = CheckingEvaluator()
    evolution = BaseEvolution(make_family(), population=8, generations=6)
    evolved = evolve(make_scorer(tmp_path, evaluator), evolution)
    assert len({c.genotype for c in evolved.population}) == 8
    assert list(evolved.population) == sorted(evolved.population, key=lambda c: c.order)
    assert list(evolved.history) == sorted(evolved.history) and len(evolved.history) == 6
    assert len(evaluator.digests) == len(set(evaluator.digests)) == 6 * 8 * 2


def test_it_beats_random_draws_of_the_same_number(tmp_path):
    wins = 0
    for seed in range(8):
        family, scorer = make_family(), make_scorer(tmp_path / str(seed))
        evolution = BaseEvolution(family, population=8, generations=5)
        evolved = evolve(scorer, evolution, seed=seed)
        drawn = small_feasibility().draw(rng(100 + seed), 40, STRATEGY)
        candidates = scorer.drive(family.candidates(scorer, under(drawn)))
        random_best = min(candidates, key=lambda c: c.order)
        wins += evolved.population[0].fitness >= random_best.fitness
    assert wins >= 6


def test_elites_keep_their_scalings_and_take_part_under_the_new_ones(tmp_path):
    evaluator = CheckingEvaluator()
    family, scorer = make_family(), make_scorer(tmp_path, evaluator)
    candidates = scorer.drive(family.candidates(scorer, under(evaluator.feasible)))
    best = max(candidates, key=lambda c: c.fitness)
    evolution = BaseEvolution(family, population=4, generations=1, is_target=True)
    target = (Scaling(), Scaling(1.0, 1.3, 1.0), Scaling(2.0, 1.1, 1.25))
    scorer = make_scorer(tmp_path / 'other')
    evolved = evolve(scorer, evolution, target, elites=[best])
    assert len(evolved.population) == 4
    assert evolved.population[0].fitness >= best.fitness
    (own,) = nearest(family.feasibility, np.array([best.genotype.genes]), target)
    assert own != STRATEGY
    known = scorer.drive(family.candidates(scorer, [Proposal(best.genotype.genes, own)]))
    # Under the target it was scored in the first generation.
    assert set(family.archs(known[0].proposal)) <= set(scorer.scores)


def test_an_exhausted_space_ends_the_evolution(tmp_path):
    evaluator = CheckingEvaluator()
    number = len(evaluator.feasible)
    evolution = BaseEvolution(make_family(), population=number + 5, generations=9)
    evolved = evolve(make_scorer(tmp_path, evaluator), evolution)
    assert {c.genotype.genes for c in evolved.population} == set(map(tuple, evaluator.feasible))
    assert len(evolved.history) < 9
    assert len(evaluator.digests) == 2 * number


def test_a_strategy_without_base_models_says_so(tmp_path):
    evolution = BaseEvolution(make_family(), population=4, generations=2)
    with pytest.raises(ValueError, match=r'scaling stage 1: .*tolerance of 0\.1'):
        evolve(make_scorer(tmp_path), evolution, (Scaling(), Scaling(), Scaling()))


def test_settings_are_checked(tmp_path, refuses):
    refuses(
        partial(BaseEvolution, make_family()),
        population=[0],
        generations=[0, 2.0],
        mutations=[0, math.inf, '1'],
    )


def test_evolution_search_keeps_the_strategy(tmp_path):
    family = make_family([1, 1, 1])
    search = EvolutionSearch(
        family, STRATEGY, population=8, generations=4, seed=3, surrogate=False
    )
    result = search.run(make_scorer(tmp_path))
    assert result.strategy == STRATEGY
    assert [step.kind for step in result.chain] == ['base evolution']
    assert result.evaluations == 3 * 8 * 4 <= search.most_evaluations
    assert result.fitness == family.mean([member.score for member in result.family])


@pytest.mark.parametrize(
    ('strategy', 'message'),
    [
        (STRATEGY[:2], r'strategy=.* must be a list of 3'),
        (STRATEGY[1:] + STRATEGY[:1], r'strategy\[0\]=.* must be Scaling'),
        ('compound', 'must be a list of 3'),
        ([[1, 2, 3]] * 3, r'strategy\[0\]'),
    ],
)
def test_evolution_search_checks_the_strategy(strategy, message):
    with pytest.raises(ValueError, match=message):
        EvolutionSearch(make_family(), strategy)


def test_what_is_given_may_be_spelt_out():
    family = make_family()
    spelt = EvolutionSearch(family, [scaling.to_json() for scaling in STRATEGY])
    assert spelt.strategy == STRATEGY
    genes = small_feasibility().draw(rng(), 1)[0].tolist()
    base = small_space().genotype(np.array(genes))
    for form in (base, genes, small_space().decode(base), small_space().decode(base).to_json()):
        assert ScalingSearch(family, form).base == base


def test_strategy_search_settings_are_checked():
    with pytest.raises(ValueError, match='num_base_models=-1'):
        StrategySearch(make_family(), num_base_models=-1)
