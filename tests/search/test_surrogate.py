"""The surrogate, and searches that choose by it what they score."""

import json

import numpy as np
import pytest
from analytic_problem import (
    BUDGET,
    AnalyticEvaluator,
    all_genotypes,
    analytic_score,
    make_family,
    make_scorer,
    run_ranks,
    small_feasibility,
    small_space,
)
from scipy.stats import spearmanr

from mmscale.cost import CostTable
from mmscale.errors import UsageError
from mmscale.search import (
    MCEA,
    EvolutionSearch,
    FamilyFitness,
    Feasibility,
    Generation,
    ParetoSearch,
    RandomSearch,
    Score,
    Surrogate,
)
from mmscale.search.surrogate import FEWEST_SCORES


def networks(number, seed=0):
    rng = np.random.default_rng(seed)
    genes = rng.permutation(all_genotypes(small_space()))[:number]
    scalings = [s for j in range(3) for s in small_space().scalings(j)]
    return [small_space().decode(row, scalings[rng.integers(len(scalings))]) for row in genes]


def test_it_ranks_networks_that_it_has_not_seen():
    archs = networks(160)
    scores = [analytic_score(arch) for arch in archs]
    surrogate = Surrogate(archs[:80], scores[:80])
    mean, deviation = surrogate.predict(archs[80:])
    true = np.array([float(score.value) for score in scores[80:]])
    assert spearmanr(mean, true).statistic > 0.6
    assert np.abs(mean - true).mean() < 0.8 * np.abs(true - true.mean()).mean()
    # Two of three lie within two of its deviations, and they are not mere guesses.
    assert (np.abs(mean - true) < 2 * deviation).mean() > 0.6
    assert deviation.mean() < 2 * true.std()
    assert 0 < surrogate.error < true.std()


def test_it_is_less_sure_of_what_it_has_not_seen():
    archs = networks(120)
    surrogate = Surrogate(archs[:60], [analytic_score(arch) for arch in archs[:60]])
    assert surrogate.predict(archs[:60])[1].mean() < surrogate.predict(archs[60:])[1].mean()


def test_equal_data_give_equal_predictions():
    archs = networks(40)
    scores = [analytic_score(arch) for arch in archs]
    first, second = (Surrogate(archs, scores, seed=1).predict(archs) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_it_needs_some_scores_and_bears_equal_ones():
    archs = networks(FEWEST_SCORES)
    with pytest.raises(UsageError, match=f'{FEWEST_SCORES - 1} scores: a surrogate needs'):
        Surrogate(archs[1:], [Score(1, 2)] * (FEWEST_SCORES - 1))
    mean, deviation = Surrogate(archs, [Score(1, 2)] * FEWEST_SCORES).predict(archs)
    np.testing.assert_allclose(mean, 0.5, atol=1e-6)
    assert np.isfinite(deviation).all()
    one = Surrogate(archs[:1] * FEWEST_SCORES, [Score(1, 2)] * FEWEST_SCORES)
    assert np.isfinite(one.predict(archs)).all()


@pytest.fixture(scope='module')
def searched(tmp_path_factory):
    """A search with a surrogate, its steps, and what it scored in order."""
    steps, evaluator = [], AnalyticEvaluator()
    scorer = make_scorer(tmp_path_factory.mktemp('searched'), evaluator)
    result = MCEA(make_family(), evaluations=70, seed=0).run(scorer, steps.append)
    return result, steps, evaluator.digests


def test_it_is_better_than_random_and_says_how_well_it_predicted(searched, tmp_path):
    result, steps, digests = searched
    random = [
        RandomSearch(make_family(), 70, seed).run(make_scorer(tmp_path / str(seed))).fitness
        for seed in range(5)
    ]
    assert result.fitness > sorted(random)[2]
    assert len(digests) == len(set(digests)) and 60 < len(digests) <= 70 + 1
    told = result.details['surrogate']
    assert told['candidates'] > 4 and -1 <= told['rank_correlation'] <= 1
    known = [s.rank_correlation for s in steps if isinstance(s, Generation) and s.rank_correlation]
    assert known and 'rank_correlation' in json.dumps([g.to_json() for g in steps])
    assert 'candidates were predicted before they were scored' in str(result)


def test_all_of_the_result_was_measured(searched):
    result, _, digests = searched
    for member in result.family:
        assert member.arch.digest in digests
        assert member.score == analytic_score(member.arch)
    rows = np.array([one.genotype.genes for one in result.runners_up])
    assert len(rows) and len({one.genotype for one in result.runners_up}) == len(rows)
    for one in result.runners_up:
        row = np.array([one.genotype.genes])
        assert small_feasibility().feasible(row, one.strategy)[0]
        assert one.fitness <= result.fitness


def test_ranks_and_what_the_archive_knows_besides_change_nothing(searched, tmp_path):
    expected = json.dumps(searched[0].to_json())
    RandomSearch(make_family(), 40, 9).run(make_scorer(tmp_path))

    def work(communicator):
        search = MCEA(make_family(), evaluations=70, seed=0)
        return json.dumps(search.run(make_scorer(tmp_path, communicator=communicator)).to_json())

    assert run_ranks(2, work) == [expected] * 2


def test_other_searches_have_one_too(tmp_path):
    family = make_family()
    search = EvolutionSearch(family, None, evaluations=40, seed=1)
    found = search.run(make_scorer(tmp_path / 'evolution'))
    assert found.evaluations == 40 <= search.most_evaluations and found.details['surrogate']
    front = ParetoSearch(CostTable(small_space()), evaluations=40, population=8)
    result = front.run(make_scorer(tmp_path / 'front'))
    assert result.evaluations == 40 == front.most_evaluations and result.details['surrogate']


@pytest.mark.parametrize('surrogate', [True, False])
def test_a_chain_that_runs_dry_says_so_and_ends(tmp_path, surrogate):
    """Eleven base models can be scaled within this tolerance: soon there is nothing new."""
    family = FamilyFitness(Feasibility(CostTable(small_space()), BUDGET, tolerance=0.01))
    search = MCEA(family, evaluations=1000, surrogate=surrogate)
    result = search.run(make_scorer(tmp_path))
    assert result.evaluations < 500
    assert [step.kind for step in result.chain[-1:]] == ['nothing new']
    best = max(step.fitness for step in result.chain if step.fitness is not None)
    assert result.fitness == best
