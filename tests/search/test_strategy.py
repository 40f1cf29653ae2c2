"""Choice of the scaling strategy, without and with a base model."""

import numpy as np
import pytest
from analytic_problem import (
    BUDGET,
    AnalyticEvaluator,
    all_genotypes,
    analytic_score,
    make_family,
    make_scorer,
    small_feasibility,
    small_space,
)

from mmscale.arch import Scaling
from mmscale.cost import CostTable
from mmscale.search import FamilyFitness, Feasibility, ScalingSearch, Score, StrategySearch
from mmscale.search.targets import distance, nearest, options


def rng(seed=0):
    return np.random.default_rng(seed)


def test_initial_strategy_compares_scalings_on_one_set_of_bases(tmp_path):
    space, feasibility = small_space(), small_feasibility()

    class BaseEvaluator(AnalyticEvaluator):
        def evaluate(self, arch):
            asked.append(arch)
            return super().evaluate(arch)

    asked = []
    scorer = make_scorer(tmp_path, BaseEvaluator())
    search = StrategySearch(make_family(), num_base_models=5)
    strategy = scorer.drive(search.initial(scorer, rng()))
    assert strategy[0] == Scaling()
    assert all(strategy[j] in feasibility.distinct_scalings(j) for j in (1, 2))
    genotypes = all_genotypes(space)
    genotypes = genotypes[feasibility.base_feasible(genotypes)]
    # Whatever was asked for is a scaled form of one of five base models.
    owners = {}
    for j in (1, 2):
        for scaling in feasibility.distinct_scalings(j):
            for i in np.flatnonzero(feasibility.scaled_feasible(genotypes, j, scaling)):
                owners.setdefault(space.decode(genotypes[i], scaling), set()).add(i)
    assert set(asked) <= owners.keys()
    used = set.union(*(owners[arch] for arch in asked if len(owners[arch]) == 1))
    assert len(used) == 5
    expected = {arch for arch, bases in owners.items() if bases & used}
    assert set(asked) == expected


def test_an_effect_is_relative_to_the_other_scalings_of_the_same_base(tmp_path):
    """A scaling that only the good base model admits must not win by that."""
    quality = {}

    class TableEvaluator(AnalyticEvaluator):
        def evaluate(self, arch):
            return Score(quality[arch], 100)

    space = small_space()
    family = make_family()
    scalings = family.feasibility.distinct_scalings(1)
    good, poor = family.feasibility.draw(rng(), 2)
    admitted = np.zeros((len(scalings), 2), dtype=bool)
    admitted[[0, 1], 0] = True
    admitted[[1, 2], 1] = True
    for genes, values in ((good, {0: 90, 1: 92}), (poor, {1: 12, 2: 8})):
        quality |= {space.decode(genes, scalings[s]): value for s, value in values.items()}
    search = StrategySearch(family, num_base_models=2)
    scorer = make_scorer(tmp_path, TableEvaluator())
    pool = np.stack([good, poor])
    # Of base means 91 and 10: -1, then +1 and +2, then -2. By its mean score the first would win.
    assert scorer.drive(search._best_option(scorer, 1, pool, admitted)) == scalings[1]


def test_without_base_models_the_target_is_what_most_of_them_admit(tmp_path):
    evaluator = AnalyticEvaluator()
    scorer = make_scorer(tmp_path, evaluator)
    strategy = scorer.drive(StrategySearch(make_family(), 0).initial(scorer, rng()))
    assert not evaluator.digests
    genotypes = all_genotypes(small_space())
    genotypes = genotypes[small_feasibility().base_feasible(genotypes)]
    for j in (1, 2):
        numbers = small_feasibility().admitted(genotypes, j).sum(axis=1)
        chosen = small_feasibility().distinct_scalings(j).index(strategy[j])
        assert numbers[chosen] > 0.9 * numbers.max()  # of a sample


def test_base_models_take_the_nearest_feasible_scalings():
    feasibility = small_feasibility()
    genotypes = all_genotypes(small_space())
    genotypes = genotypes[feasibility.base_feasible(genotypes)]
    target = (
        Scaling(),
        feasibility.distinct_scalings(1)[3],
        feasibility.distinct_scalings(2)[5],
    )
    found = nearest(feasibility, genotypes, target)
    assert sum(strategy is None for strategy in found) < len(found)
    for genes, strategy in zip(genotypes, found, strict=True):
        own = [options(feasibility, genes[None], j)[0] for j in (1, 2)]
        if strategy is None:
            assert not all(own)
            continue
        assert feasibility.feasible(genes[None], strategy)[0]
        for j in (1, 2):
            least = min(distance(scaling, target[j]) for scaling in own[j - 1])
            assert distance(strategy[j], target[j]) == least


def test_scaling_search_is_exhaustive_per_scaling_stage(tmp_path):
    space, feasibility = small_space(), small_feasibility()
    family = make_family()
    base = space.genotype(feasibility.draw(rng(2), 1)[0])
    result = ScalingSearch(family, base).run(make_scorer(tmp_path))
    genes = np.array([base.genes])
    for j in (1, 2):
        options = [s for s in space.scalings(j) if feasibility.scaled_feasible(genes, j, s)[0]]
        best = max(analytic_score(space.decode(base, s)).value for s in options)
        assert result.family[j].score.value == best
    assert result.family[0].score == analytic_score(space.decode(base))
    assert result.evaluations <= ScalingSearch(family, base).most_evaluations


def test_equal_scores_go_to_the_lower_cost(tmp_path):
    class FlatEvaluator(AnalyticEvaluator):
        def evaluate(self, arch):
            return Score(1, 2)

    feasibility = small_feasibility()
    base = feasibility.draw(rng(2), 1)
    scorer = make_scorer(tmp_path, FlatEvaluator())
    search = StrategySearch(make_family())
    strategy = scorer.drive(search.given_base(scorer, base[0]))
    for j in (1, 2):
        costs = [feasibility.cost(base, s)[0] for s, _ in feasibility.scalings_of(base[0], j)]
        assert feasibility.cost(base, strategy[j])[0] == min(costs)


def test_a_scaling_stage_of_weight_0_keeps_its_scaling_unevaluated(tmp_path):
    feasibility = small_feasibility()
    evaluator = AnalyticEvaluator()
    base = feasibility.draw(rng(2), 1)[0]
    present = feasibility.scalings_of(base, 1)[-1][0]
    search = StrategySearch(make_family([0, 0, 1]))
    scorer = make_scorer(tmp_path, evaluator)
    steps = search.given_base(scorer, base, (Scaling(), present, Scaling()))
    strategy = scorer.drive(steps)
    assert strategy[1] == present
    assert len(evaluator.digests) == len(feasibility.scalings_of(base, 2))


def test_scaling_search_checks_the_base():
    smallest = small_space().genotype(all_genotypes(small_space())[0])
    with pytest.raises(ValueError, match=f'base has .* flops, not {BUDGET:,}'):
        ScalingSearch(make_family(), smallest)


def narrow_family(tolerance):
    return FamilyFitness(Feasibility(CostTable(small_space()), BUDGET, tolerance=tolerance))


def test_a_scaling_stage_out_of_reach_is_named(tmp_path):
    family = narrow_family(2e-3)
    scorer = make_scorer(tmp_path)
    with pytest.raises(ValueError) as error:
        scorer.drive(StrategySearch(family).initial(scorer, rng()))
    message = str(error.value)
    assert 'scaling stage' in message and 'tolerance of 0.002' in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('surrogate', [True, False])
@pytest.mark.parametrize('evaluations', [3, 10, 14])
def test_a_scaling_search_of_few_evaluations_keeps_to_them(tmp_path, evaluations, surrogate):
    family = make_family([1, 1, 1])
    base = small_feasibility().draw(rng(), 1)[0].tolist()
    everything = ScalingSearch(family, base).run(make_scorer(tmp_path / 'all'))
    search = ScalingSearch(family, base, evaluations=evaluations, surrogate=surrogate)
    found = search.run(make_scorer(tmp_path / 'few'))
    assert 3 <= found.evaluations <= evaluations
    assert found.fitness <= everything.fitness
    assert found.settings['evaluations'] == evaluations
    again = search.run(make_scorer(tmp_path / 'few'))
    assert again.to_json() == found.to_json()


@pytest.mark.parametrize('surrogate', [True, False])
def test_a_scaling_search_that_counts_the_base_alone_ends(tmp_path, surrogate):
    base = small_feasibility().draw(rng(), 1)[0].tolist()
    search = ScalingSearch(make_family([1, 0, 0]), base, evaluations=1, surrogate=surrogate)
    assert len(search.run(make_scorer(tmp_path)).family) == 3


def test_a_scaling_search_that_may_score_all_scalings_finds_what_is_best(tmp_path):
    family = make_family([1, 1, 1])
    base = small_feasibility().draw(rng(), 1)[0].tolist()
    everything = ScalingSearch(family, base).run(make_scorer(tmp_path / 'all'))
    found = ScalingSearch(family, base, evaluations=99).run(make_scorer(tmp_path / 'most'))
    assert found.fitness == everything.fitness
    assert found.evaluations == everything.evaluations
