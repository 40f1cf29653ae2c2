"""Candidates that certainly lose are dropped early, and the outcome is the same."""

import json
from fractions import Fraction

import numpy as np
import pytest
from analytic_problem import (
    AnalyticEvaluator,
    all_genotypes,
    make_family,
    make_scorer,
    run_ranks,
    small_feasibility,
    small_space,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import mmscale.search.analytic
from mmscale.arch import Scaling
from mmscale.search import (
    MCEA,
    Archive,
    EvolutionSearch,
    ScalingSearch,
    Score,
    Scorer,
    SeparateSearch,
)

SCHEDULE = dict(population=6, generations=4, rounds=2, num_base_models=2)
IMAGES, BATCH = 60, 10
STRATEGY = (Scaling(), Scaling(1.2, 1.2, 1.0), Scaling(1.4, 1.1, 1.5))


class ImageEvaluator(AnalyticEvaluator):
    """Scores 60 images in batches, and stops where the score cannot be reached any more.

    Few images make many equal scores.
    """

    def __init__(self, seed=0):
        super().__init__()
        self.fingerprint = {'evaluator': {'name': 'images', 'seed': seed}}
        self.seed = seed
        self.seen = 0
        self.dropped = []

    def right(self, arch):
        rng = np.random.default_rng([self.seed, int(arch.digest[:12], 16)])
        return rng.random(IMAGES) < 0.2 + 0.01 * len(arch.blocks) * rng.integers(1, 6)

    def evaluate(self, arch, needed=None):
        self.digests.append(arch.digest)
        right, correct = self.right(arch), 0
        for start in range(0, IMAGES, BATCH):
            if needed is not None and correct + IMAGES - start < needed * IMAGES:
                self.dropped.append(arch.digest)
                return None
            self.seen += BATCH
            correct += int(right[start : start + BATCH].sum())
        return Score(correct, IMAGES)


def outcome(result):
    """All of a result but how many evaluations it took."""

    def without(data):
        if isinstance(data, dict):
            left = {k: v for k, v in data.items() if k not in ('evaluations', 'dropped')}
            return {key: without(value) for key, value in left.items()}
        return [without(item) for item in data] if isinstance(data, list) else data

    data = without(result.to_json())
    del data['settings']['halving']
    return json.dumps(data)


def base():
    return small_space().genotype(small_feasibility().draw(np.random.default_rng(2), 1)[0])


def mcea(**settings):
    return MCEA(make_family(), **SCHEDULE, **settings)


SEARCHES = {
    'mcea': lambda family, **kw: MCEA(family, **SCHEDULE, **kw),
    'evolution': lambda family, **kw: EvolutionSearch(family, STRATEGY, 6, 6, **kw),
    'plain evolution': lambda family, **kw: EvolutionSearch(family, None, 6, 6, **kw),
    'separate': lambda family, **kw: SeparateSearch(family, **SCHEDULE, **kw),
    'scaling': lambda family, **kw: ScalingSearch(family, base(), **kw),
}


@pytest.mark.parametrize('name', SEARCHES)
def test_the_outcome_is_that_without_halving(tmp_path, name):
    whole, halving = ImageEvaluator(), ImageEvaluator()
    family = make_family([1, 1, 0.5])
    plain = SEARCHES[name](family).run(make_scorer(tmp_path / 'plain', whole))
    scorer = make_scorer(tmp_path / 'halving', halving)
    result = SEARCHES[name](family, halving=True).run(scorer)
    assert outcome(result) == outcome(plain)
    assert result.settings['halving'] and not plain.settings['halving']
    assert halving.dropped and halving.seen < whole.seen
    assert result.evaluations < plain.evaluations
    if name == 'separate':
        assert sum(run['dropped'] for run in result.details['runs']) >= len(halving.dropped)
    else:
        assert result.details['dropped'] >= len(set(halving.dropped))
        assert plain.details == {}


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.sampled_from([0, 0.3, 1, 2]), min_size=3, max_size=3))
def test_the_outcome_is_the_same_for_any_scores_and_weights(tmp_path_factory, seed, weights):
    if not any(weights):
        weights = None
    results = []
    for halving in (False, True):
        directory = tmp_path_factory.mktemp('search')
        scorer = make_scorer(directory, ImageEvaluator(seed))
        family = make_family(weights)
        search = EvolutionSearch(family, STRATEGY, 4, 5, halving=halving, seed=seed)
        results.append(outcome(search.run(scorer)))
    assert results[0] == results[1]


def test_ranks_and_replays_drop_the_same(tmp_path):
    def run(communicator=None, directory=tmp_path / 'ranks'):
        scorer = make_scorer(directory, ImageEvaluator(), communicator)
        return json.dumps(mcea(halving=True).run(scorer).to_json())

    alone = run(directory=tmp_path / 'alone')
    assert run_ranks(2, run) == [alone] * 2
    archive = tmp_path / 'alone' / 'rank0000.jsonl'
    lines = archive.read_bytes().splitlines(keepends=True)
    archive.write_bytes(b''.join(lines[: len(lines) // 2]) + b'{"che')
    assert run(directory=tmp_path / 'alone') == alone
    # An archive of a search without halving knows the scores of those that are dropped.
    mcea().run(make_scorer(tmp_path / 'plain', ImageEvaluator()))
    assert run(directory=tmp_path / 'plain') == alone


def test_a_dropped_arch_has_no_score_until_one_is_needed(tmp_path):
    evaluator = ImageEvaluator()
    genes = all_genotypes(small_space())[:30]
    archs = [small_space().decode(row) for row in genes]
    true = [int(evaluator.right(arch).sum()) for arch in archs]
    median = sorted(true)[15]
    scorer = Scorer(Archive(tmp_path, evaluator.fingerprint), evaluator)
    scores = scorer.score_needed(archs, [Fraction(median, IMAGES)] * 30)
    expected = [Score(right, IMAGES) if right >= median else None for right in true]
    assert scores == expected and true.count(median) > 1
    assert scorer.evaluations == 30 - scores.count(None)
    assert len(scorer.dropped) == scores.count(None) > 0
    for digest in evaluator.dropped:
        assert digest not in scorer.archive.digests()
    assert scorer.score(archs) == [Score(right, IMAGES) for right in true]
    assert scorer.evaluations == 30


def test_one_arch_with_two_needs_is_scored_for_the_lesser(tmp_path):
    evaluator = ImageEvaluator()
    arch = small_space().smallest()
    score = Score(int(evaluator.right(arch).sum()), IMAGES)
    scorer = Scorer(Archive(tmp_path, evaluator.fingerprint), evaluator)
    needed = [score.value + Fraction(1, IMAGES), score.value, Fraction(-1)]
    assert scorer.score_needed([arch] * 3, needed) == [None, score, score]
    assert len(evaluator.digests) == 1 and not scorer.dropped


def test_an_evaluator_may_ignore_what_is_needed(tmp_path):
    class Stubborn(ImageEvaluator):
        def evaluate(self, arch, needed=None):
            return super().evaluate(arch)

    plain = mcea(halving=True).run(make_scorer(tmp_path / 'a', ImageEvaluator()))
    result = mcea(halving=True).run(make_scorer(tmp_path / 'b', Stubborn()))
    assert result.to_json() == plain.to_json()


def test_a_dry_run_knows_halving(tmp_path):
    evaluator = mmscale.search.analytic.AnalyticEvaluator(small_feasibility())
    plain, halving = (
        mcea(halving=on).run(make_scorer(tmp_path / str(on), evaluator)) for on in (False, True)
    )
    assert outcome(halving) == outcome(plain)
    assert halving.details['dropped'] > 0
