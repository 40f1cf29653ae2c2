"""Choice of the scaling strategy, without and with a base model."""

from fractions import Fraction

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
from hypothesis import given
from hypothesis import strategies as st

from mmscale.arch import Scaling
from mmscale.cost import CostTable
from mmscale.search import FamilyFitness, Feasibility, ScalingSearch, Score, StrategySearch
from mmscale.search.strategy import _best_combination, _Option


def rng(seed=0):
    return np.random.default_rng(seed)


def test_initial_strategy_leaves_a_population_and_uses_one_set_of_bases(tmp_path):
    space, feasibility = small_space(), small_feasibility()

    class BaseEvaluator(AnalyticEvaluator):
        def evaluate(self, arch):
            asked.append(arch)
            return super().evaluate(arch)

    asked = []
    scorer = make_scorer(tmp_path, BaseEvaluator())
    search = StrategySearch(make_family(), num_base_models=5)
    initial = search.initial(scorer, rng(), population=20)
    assert initial.strategy[0] == Scaling()
    assert len(initial.base_models) >= 20
    assert feasibility.feasible(initial.base_models, initial.strategy).all()
    # Whatever was asked for is a scaled form of one of five base models.
    genotypes = all_genotypes(space)
    genotypes = genotypes[feasibility.base_feasible(genotypes)]
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
    options = search._options(scorer, 1, np.stack([good, poor]), admitted)
    # Of base means 91 and 10: -1, then +1 and +2, then -2, each divided by two base models.
    assert [(o.scaling, o.effect) for o in options] == [
        (scalings[1], Fraction(3, 200)),
        (scalings[0], Fraction(-1, 200)),
        (scalings[2], Fraction(-2, 200)),
    ]


def option(effect, admitted):
    return _Option(Fraction(effect), Scaling(), np.array(admitted, dtype=bool))


def test_the_best_combination_leaves_enough_base_models():
    first = [option(5, [1, 0, 0, 0]), option(4, [1, 1, 1, 0])]
    second = [option(3, [0, 1, 1, 1]), option(1, [1, 1, 1, 0])]
    assert _best_combination([first, second], 4, 2) == [first[1], second[0]]
    assert _best_combination([first, second], 4, 3) == [first[1], second[1]]
    # Eight are not to be had, four neither, two are.
    assert _best_combination([first, second], 4, 8) == [first[1], second[0]]
    assert _best_combination([first, second], 4, 1) == [first[1], second[0]]


@given(data=st.data())
def test_the_best_combination_equals_brute_force(data):
    masks = st.lists(st.booleans(), min_size=5, max_size=5)
    stages = []
    for _ in range(3):
        drawn = data.draw(st.lists(st.tuples(st.integers(-5, 5), masks), min_size=1, max_size=4))
        drawn = [(effect, [True, *mask]) for effect, mask in drawn]
        stages.append([option(e, m) for e, m in sorted(drawn, key=lambda d: -d[0])])
    wanted = data.draw(st.integers(1, 6))
    chosen = _best_combination(stages, 6, wanted)

    def left(options):
        return np.logical_and.reduce([o.admitted for o in options]).sum()

    everything = [(a, b, c) for a in stages[0] for b in stages[1] for c in stages[2]]
    while not any(left(options) >= wanted for options in everything):
        wanted //= 2
    best = max(sum(o.effect for o in options) for options in everything if left(options) >= wanted)
    assert sum(o.effect for o in chosen) == best
    assert left(chosen) >= wanted


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
    strategy = StrategySearch(make_family()).given_base(scorer, base[0])
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
    strategy = search.given_base(scorer, base, (Scaling(), present, Scaling()))
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
    with pytest.raises(ValueError) as error:
        StrategySearch(family).initial(make_scorer(tmp_path), rng(), population=8)
    message = str(error.value)
    assert 'scaling stage' in message and 'tolerance of 0.002' in message
    assert not list(tmp_path.iterdir())


def test_initial_falls_back_to_few_base_models(tmp_path):
    family = narrow_family(0.02)
    search = StrategySearch(family, num_base_models=3)
    initial = search.initial(make_scorer(tmp_path), rng(), population=64)
    assert 1 <= len(initial.base_models) < 64
    assert family.feasibility.feasible(initial.base_models, initial.strategy).all()
