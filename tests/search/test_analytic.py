"""The analytic score: its optimum is known and within reach, and evolution finds it."""

import functools
from pathlib import Path

import numpy as np
import pytest
from analytic_problem import all_genotypes, small_feasibility, small_space
from mmengine.config import Config

from mmscale.arch import Arch, Block, Head, Scaling, SearchSpace, Stem
from mmscale.cost import CostTable
from mmscale.search import (
    MCEA,
    Archive,
    FamilyFitness,
    Feasibility,
    RandomSearch,
    Score,
    Scorer,
)
from mmscale.search.analytic import TOTAL, AnalyticEvaluator

SPACES = Path(__file__).parents[2] / 'configs' / '_base_' / 'search_spaces'


@functools.cache
def paper_feasibility():
    space = SearchSpace(**Config.fromfile(SPACES / 'scalenet.py')['space'])
    return Feasibility(CostTable(space), 340e6)


@pytest.mark.parametrize('feasibility', [small_feasibility, paper_feasibility])
def test_the_hidden_family_meets_all_budgets_and_scores_1(feasibility):
    space = feasibility().space
    for seed in range(3):
        evaluator = AnalyticEvaluator(feasibility(), seed)
        base = np.array([evaluator.base.genes])
        assert feasibility().feasible(base, evaluator.strategy).all()
        assert len(evaluator.archs) == len(space.scaling_stages)
        for arch, scaling in zip(evaluator.archs, evaluator.strategy, strict=True):
            assert arch == space.decode(evaluator.base, scaling)
            assert evaluator.evaluate(arch) == Score(TOTAL, TOTAL)


def test_no_other_network_of_a_small_space_scores_1():
    evaluator, space = AnalyticEvaluator(small_feasibility(), seed=3), small_space()
    best, count = 0, 0
    for j in range(3):
        for scaling in space.scalings(j):
            for genes in all_genotypes(space)[::23]:
                arch = space.decode(genes, scaling)
                value = evaluator.evaluate(arch).value
                assert 0 < value <= 1 and (value == 1) == (arch in evaluator.archs)
                best, count = max(best, value), count + 1
    assert count > 1000 and best > 0.5


def network(kernels, channels=10, resolution=20):
    stages, before = [], 4
    for stage in kernels:
        blocks = []
        for kernel in stage:
            blocks.append(Block('dsconv', kernel, 1, before, before, channels, groups=before))
            before = channels
        stages.append(tuple(blocks))
    return Arch(resolution, Stem(4), tuple(stages), Head(num_classes=2))


def test_the_score_is_that_of_the_formula():
    evaluator = AnalyticEvaluator(small_feasibility())
    evaluator.archs = (network([[3], [3, 5]]),)
    for other, expected in (
        # Agreements 1 1 1; one block, two pairs: (1 + 1 + 1 + 2 (1 + 1)) / 7.
        ({}, 1),
        # 0 1 1: pairs 0 and 1.
        ({'kernels': [[7], [3, 5]]}, (2 + 2 * 1) / 7),
        # 1/2 1 1: pairs 1/2 and 1.
        ({'kernels': [[5], [3, 5]]}, (2.5 + 2 * 1.5) / 7),
        # 1 1 0: the missing block agrees with nothing.
        ({'kernels': [[3], [3]]}, (2 + 2 * 1) / 7),
        # 1 1 1 0: a block too many.
        ({'kernels': [[3], [3, 5, 5]]}, (3 + 2 * 2) / 10),
        # 0 0 1: neighbours that are both wrong are worth as much as two right ones.
        ({'kernels': [[7], [7, 5]]}, (1 + 2 * 1) / 7),
        ({'channels': 11}, 1 / (1 + 5 * 0.1)),
        ({'resolution': 25}, 1 / (1 + 5 * 0.25)),
        ({'resolution': 16}, 1 / (1 + 5 * 0.25)),
    ):
        score = evaluator.evaluate(network(**{'kernels': [[3], [3, 5]], **other}))
        assert float(score.value) == pytest.approx(expected, abs=1.5 / TOTAL)


def test_a_single_right_kernel_may_lower_the_score():
    evaluator = AnalyticEvaluator(small_feasibility())
    evaluator.archs = (network([[3], [3, 3, 3]]),)
    wrong, mixed = (
        evaluator.evaluate(network(kernels)).value
        for kernels in ([[7], [7, 7, 7]], [[7], [7, 3, 7]])
    )
    assert mixed < wrong


def test_what_the_search_is_given_is_part_of_the_optimum():
    feasibility = small_feasibility()
    free = AnalyticEvaluator(feasibility, seed=1)
    given = AnalyticEvaluator(feasibility, seed=2, base=free.base)
    assert given.base == free.base
    given = AnalyticEvaluator(feasibility, seed=2, strategy=free.strategy)
    assert given.strategy == free.strategy
    assert feasibility.feasible(np.array([given.base.genes]), free.strategy).all()
    alone = AnalyticEvaluator(feasibility, seed=2, strategy=(Scaling(),))
    assert len(alone.archs) == 1


def test_with_drift_every_scaling_stage_has_a_base_model_of_its_own():
    feasibility = small_feasibility()
    space = feasibility.space
    evaluator = AnalyticEvaluator(feasibility, seed=1, drift=2)
    assert evaluator.archs[0] == space.decode(evaluator.base)
    for j, (arch, scaling) in enumerate(zip(evaluator.archs, evaluator.strategy, strict=True)):
        assert evaluator.evaluate(arch) == Score(TOTAL, TOTAL)
        if j:
            assert arch != space.decode(evaluator.base, scaling)
            some = all_genotypes(space)
            some = some[feasibility.base_feasible(some)]
            some = some[feasibility.scaled_feasible(some, j, scaling)]
            assert arch in [space.decode(genes, scaling) for genes in some]
    assert AnalyticEvaluator(feasibility, seed=1).archs[1:] != evaluator.archs[1:]


def test_the_fingerprint_names_the_family():
    def evaluator(seed):
        return AnalyticEvaluator(small_feasibility(), seed)

    assert evaluator(1).fingerprint == evaluator(1).fingerprint != evaluator(2).fingerprint


def test_bad_settings_are_one_clear_error():
    with pytest.raises(ValueError, match='seed=-1 must be an integer of 0 or more'):
        AnalyticEvaluator(small_feasibility(), seed=-1)
    narrow = Feasibility(CostTable(small_space()), 600_000, tolerance=1e-6)
    with pytest.raises(ValueError, match='scaling stage 0: no base model meets the budget'):
        AnalyticEvaluator(narrow)


# ---------------------------------------------------------------------- searches of it


def run(directory, seed, make_search):
    evaluator = AnalyticEvaluator(paper_feasibility(), seed)
    with Archive(directory, evaluator.fingerprint, durable=False) as archive:
        search = make_search(FamilyFitness(paper_feasibility()), seed)
        return search.run(Scorer(archive, evaluator))


@pytest.fixture(scope='module')
def comparison(tmp_path_factory):
    """MCEA with a hundredth of the evaluations of the published schedule, and random search."""
    directory = tmp_path_factory.mktemp('searches')
    pairs = []
    for seed in range(2):
        found = run(
            directory / f'mcea{seed}',
            seed,
            lambda family, seed: MCEA(family, evaluations=450, seed=seed),
        )
        random = run(
            directory / f'random{seed}',
            seed,
            lambda family, seed, n=found.evaluations: RandomSearch(family, n, seed),
        )
        pairs.append((found, random))
    return pairs


@pytest.mark.slow
def test_mcea_beats_random_search_at_equal_evaluations(comparison):
    for found, random in comparison:
        # Less than one family of three networks is left over.
        assert found.evaluations - 3 < random.evaluations <= found.evaluations + 1
    assert all(found.fitness > random.fitness for found, random in comparison)


@pytest.mark.slow
def test_mcea_comes_near_the_optimum(comparison):
    """Random search at as many evaluations reaches some 0.65."""
    reached = [float(found.fitness) for found, _ in comparison]
    assert max(reached) <= 1
    assert sum(reached) / len(reached) >= 0.75
