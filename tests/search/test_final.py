"""Errors of scores, which of them are told apart, and the final round among the leaders."""

import json
import math
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from analytic_problem import all_genotypes, small_feasibility, small_space

from mmscale.search import (
    Archive,
    EvaluationError,
    FamilyFitness,
    FamilyMember,
    Score,
    Scorer,
    SearchResult,
)
from mmscale.search.family import Proposal
from mmscale.search.final import final_round, leaders
from mmscale.search.noise import shares_told_apart, standard_error, told_apart, with_error
from mmscale.search.result_files import read_result

IMAGES, FINAL_IMAGES = 1000, 4000


@pytest.fixture(scope='module')
def family():
    return FamilyFitness(small_feasibility(), [0, 1, 1])


@pytest.fixture(scope='module')
def proposals(family):
    """Four families, each with networks of its own."""
    feasibility, space = family.feasibility, small_space()
    strategy = tuple(space.scalings(j)[0] for j in range(3))
    rng = np.random.default_rng(0)
    strategies = [
        (strategy[0], space.scalings(1)[int(a)], space.scalings(2)[int(b)])
        for a, b in zip(rng.integers(0, 40, 60), rng.integers(0, 20, 60), strict=True)
    ]
    genes = all_genotypes(space)
    found, taken = [], set()
    for own in strategies:
        for row in genes[feasibility.feasible(genes, own)]:
            proposal = Proposal(tuple(row.tolist()), own)
            archs = set(family.archs(proposal)) | {space.decode(row)}
            if not archs & taken:
                taken |= archs
                found.append(proposal)
            if len(found) == 4:
                return found
    raise AssertionError('the space has no such families')


class Evaluator:
    """Scores are given by Arch, all others are 0.5."""

    def __init__(self, name, images, scores):
        self.fingerprint = {'evaluator': name}
        self.images, self.scores = images, scores
        self.evaluated = []

    def evaluate(self, arch):
        self.evaluated.append(arch)
        value = self.scores.get(arch, 0.5)
        if value is None:
            raise EvaluationError('out of memory')
        return Score(round(value * self.images), self.images)


def given(family, proposals, values):
    """Scores of all networks of each family that its fitness counts."""
    return {
        arch: value
        for proposal, value in zip(proposals, values, strict=True)
        for arch in family.archs(proposal)
    }


@pytest.fixture
def play(family, proposals, tmp_path):
    """Runs a final round after a search with some fitness per family; see what it returns."""

    def play(values, final_values, most=5, name='search'):
        search = Evaluator('search', IMAGES, given(family, proposals, values))
        final = Evaluator('final', FINAL_IMAGES, given(family, proposals, final_values))
        with Archive(tmp_path / name, search.fingerprint) as archive:
            scorer = Scorer(archive, search)
            scored = scorer.drive(family.candidates(scorer, proposals))
            best, *others = sorted(scored, key=lambda one: one.order)
            archs = [family.space.decode(best.genotype, s) for s in best.strategy]
            table = family.feasibility.table
            members = tuple(
                FamilyMember(j, best.genotype, scaling, arch, table.cost(arch), score)
                for j, (scaling, arch, score) in enumerate(
                    zip(best.strategy, archs, scorer.score(archs), strict=True)
                )
            )
            result = SearchResult(
                best.genotype, members, best.fitness, (), scorer.evaluations, 0, 3,
                family.settings, runners_up=tuple(others),
            )  # fmt: skip

            @contextmanager
            def open_final():
                with Archive(tmp_path / f'{name}-final', final.fingerprint) as own:
                    yield Scorer(own, final)

            return result, final_round(result, family, most, scorer, open_final), final

    return play


def test_a_score_has_its_binomial_error():
    assert Score(700, 1000).error == math.sqrt(0.7 * 0.3 / 1000)
    assert Score(0, 7).error == Score(7, 7).error == 0
    assert with_error(Fraction(7, 10), Score(700, 1000).error) == '0.7000 ± 0.0284'
    assert with_error(0.7, None, 1) == '0.7'
    # 1.96 standard errors of the difference are 0.0400 here.
    assert not told_apart(Score(700, 1000), Score(739, 1000))
    assert told_apart(Score(700, 1000), Score(741, 1000))
    assert told_apart(Score(741, 1000), Score(700, 1000))
    assert not shares_told_apart(0.7, 0.739, 1000) and shares_told_apart(0.7, 0.741, 1000)
    # A mean of shares has at most the error of a share of its size.
    mean = standard_error(0.5, 100)
    assert (standard_error(0.2, 100) + standard_error(0.8, 100)) / 2 < mean


def test_the_final_round_chooses_by_its_own_scores(play, family, proposals, tmp_path):
    # Of the first three 1.96 standard errors of the difference are 0.04; the last is apart.
    values, finals = [0.74, 0.73, 0.72, 0.60], [0.70, 0.76, 0.75, 0.99]
    result, after, final = play(values, finals)
    assert result.base.genes == proposals[0].genes
    assert leaders(result, family, 2)[1] == result.runners_up[0]
    assert [one.proposal for one in leaders(result, family, 5)] == proposals[:3]
    assert set(final.evaluated) == set(given(family, proposals[:3], [0] * 3))
    # The family is another, with both scores.
    assert (after.base.genes, after.strategy) == (proposals[1].genes, proposals[1].strategy)
    assert after.fitness == Fraction(73, 100)
    stages = after.family
    assert [m.score for m in stages] == [Score(500, IMAGES), *[Score(730, IMAGES)] * 2]
    assert [m.final_score for m in stages] == [None, *[Score(3040, FINAL_IMAGES)] * 2]
    assert [m.arch for m in stages[1:]] == family.archs(proposals[1])
    assert [float(one) for one in after.final.fitness] == [0.76, 0.75, 0.70]
    assert [one.proposal for one in after.final.leaders] == [proposals[i] for i in (1, 2, 0)]
    assert after.final.images == FINAL_IMAGES and after.final.alike == 1
    assert [one.proposal for one in after.runners_up] == [proposals[i] for i in (0, 2, 3)]
    # The one network of weight 0 that the search had not asked for.
    assert after.evaluations == result.evaluations + 1
    assert 'final round of 3 leaders on 4,000 images: fitness 0.7600 ± 0.0132' in str(after)
    (tmp_path / 'result.json').write_text(json.dumps(after.to_json()))
    data = read_result(tmp_path / 'result.json')
    assert data['scaling_stages'][1]['final_score'] == {'correct': 3040, 'total': 4000}
    assert [one['final_fitness'] for one in data['final']['leaders']] == [0.76, 0.75, 0.7]
    assert data['final']['within_error'] == 1
    # From the archives alone it is the same, and nothing is evaluated.
    again = play(values, finals)
    assert again[1] == after and again[2].evaluated == []


def test_what_is_told_apart_needs_no_final_round(play):
    result, after, final = play([0.80, 0.70, 0.70, 0.60], [0, 1, 1, 1])
    assert after is result and final.evaluated == []
    assert result.alike == () and 'runners-up' not in str(result)


def test_leaders_that_fail_are_left_out(play, proposals):
    values = [0.74, 0.73, 0.72, 0.60]
    _, after, _ = play(values, [0.70, None, 0.75, 0.99])
    assert after.base.genes == proposals[2].genes and len(after.final.leaders) == 2
    result, after, _ = play(values, [None] * 4, name='all')
    assert after is result


def test_so_many_leaders_take_part(play, proposals):
    _, after, _ = play([0.74, 0.73, 0.72, 0.60], [0.70, 0.69, 0.99, 0.99], most=2)
    assert after.base.genes == proposals[0].genes and len(after.final.leaders) == 2
    assert after.fitness == Fraction(74, 100) and len(after.runners_up) == 3


def test_a_result_says_what_is_within_the_error(play):
    result, _, _ = play([0.74, 0.73, 0.72, 0.60], [0] * 4)
    text = str(result)
    assert 'fitness 0.7400 ± 0.0272 after 9 evaluations, seed 3' in text
    assert '740/1000 = 0.7400 ± 0.0272' in text
    assert (
        '± is 1.96 standard errors of 1,000 images, which do not tell apart scaling stages 1 and '
        '2; this family and 2 of 3 runners-up'
    ) in text
    data = result.to_json()
    assert data['fitness_error'] == standard_error(Fraction(74, 100), IMAGES)
    assert [m['error'] for m in data['scaling_stages']] == [m.score.error for m in result.family]
    assert data['within_error'] == {'scaling_stages': [[1, 2]], 'runners_up': 2}
    assert [one['fitness'] for one in data['runners_up']] == [0.73, 0.72, 0.6]
    # Of what counts no images nothing is said.
    other = replace(result, counted=False)
    assert '±' not in str(other) and other.to_json()['counted'] is False
    assert not {'fitness_error', 'within_error'} & other.to_json().keys()
    assert leaders(other, FamilyFitness(small_feasibility(), [0, 1, 1]), 5)[1:] == []


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(counted=1.5), 'counted=1.5'),
        (dict(fitness_error='0'), 'fitness_error'),
        (dict(runners_up=3), 'runners_up'),
        (dict(within_error=dict(runners_up=-1)), 'within_error.runners_up'),
        (dict(final=dict(images=0, leaders=[], within_error=0)), 'final.images'),
        (dict(final=dict(images=5, leaders=[{}], within_error=0)), 'final_fitness'),
    ],
)
def test_what_a_result_must_not_say_is_refused(changes, message, play, tmp_path):
    result, _, _ = play([0.74, 0.73, 0.72, 0.60], [0] * 4)
    path = tmp_path / 'result.json'
    path.write_text(json.dumps({**result.to_json(), **changes}))
    with pytest.raises(ValueError, match=message):
        read_result(path)
