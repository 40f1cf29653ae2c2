"""Pareto search: its front is the front of all it saw, and it sees more than chance would."""

import json
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from analytic_problem import TOTAL, AnalyticEvaluator, analytic_score, run_ranks, small_space

from mmscale.arch import SearchSpace
from mmscale.cost import CostTable, LatencyModel, LatencySetting, count
from mmscale.search import Archive, ParetoSearch, Scorer, hypervolume, pareto_front

TABLE = CostTable(small_space())
SMALL = dict(population=8, generations=5)


def pareto(directory, evaluator=None, communicator=None, on_step=None, **settings):
    evaluator = evaluator or AnalyticEvaluator()
    rank = communicator.rank if communicator else 0
    archive = Archive(directory, evaluator.fingerprint, rank, durable=False)
    scorer = Scorer(archive, evaluator, communicator)
    with archive:
        return ParetoSearch(TABLE, **{**SMALL, **settings}).run(scorer, on_step)


def as_bytes(result):
    return json.dumps(result.to_json()).encode()


def entries(directory):
    return list(Archive.open_existing(directory).entries())


@pytest.fixture(scope='module')
def latency_model():
    costs = [count(small_space().largest(j)) for j in range(3)]
    costs += [count(small_space().smallest(j)) for j in range(3)]
    times = [0.5 + 2e-5 * cost.acts + 3e-7 * cost.flops for cost in costs]
    return LatencyModel.fit(costs, times, LatencySetting())


@pytest.fixture(scope='module')
def searched(tmp_path_factory):
    directory = tmp_path_factory.mktemp('pareto')
    return pareto(directory), directory


@pytest.mark.parametrize('metric', ['flops', 'params', 'acts'])
def test_the_front_is_that_of_all_that_was_evaluated(tmp_path, metric):
    result = pareto(tmp_path, metric=metric)
    points = [(e.outcome.value, getattr(e.cost, metric)) for e in entries(tmp_path)]
    front = [(m.score.value, getattr(m.cost, metric)) for m in result.front]
    for i, (score, cost) in enumerate(points):
        dominated = [p for p in points if p[0] >= score and p[1] <= cost and p != points[i]]
        assert (points[i] in front) == (not dominated)
    assert front == sorted(front, key=lambda point: (point[1], point[0]))
    assert front[0][1] == min(cost for _, cost in points)
    assert front[-1][0] == max(score for score, _ in points)
    assert result.hypervolume[-1] == hypervolume(points, result.settings['cost_range'])


def test_members_are_what_they_say(searched):
    result, _ = searched
    space = small_space()
    for member in result.front:
        assert member.arch == space.decode(member.base, member.scaling)
        assert space.genotype(np.array(member.base.genes)) == member.base
        assert member.scaling in space.scalings(member.scaling_stage)
        assert member.cost == count(member.arch)
        assert member.score == analytic_score(member.arch)
    data = json.loads(as_bytes(result))
    assert data['kind'] == 'pareto' and data['metric'] == 'flops' and data['schema'] == 1
    assert len(data['hypervolume']) == 5 and data['evaluations'] == 40
    assert list(data['hypervolume']) == sorted(data['hypervolume'])
    assert set(data['front'][0]) == {
        'genes', 'scaling_stage', 'scaling', 'cost', 'score', 'error', 'arch'
    }  # fmt: skip
    assert str(result).count('\n') == len(result.front) + 1  # and what ± is


def test_no_arch_is_scored_twice_and_every_one_counts(tmp_path):
    evaluator = AnalyticEvaluator()
    result = pareto(tmp_path, evaluator, population=16, generations=8)
    assert len(evaluator.digests) == len(set(evaluator.digests)) == result.evaluations == 128


def test_every_generation_is_reported(tmp_path):
    steps = []
    result = pareto(tmp_path, on_step=steps.append)
    assert [step.number for step in steps] == [1, 2, 3, 4, 5]
    assert [step.evaluations for step in steps] == [8, 16, 24, 32, 40]
    points = {(m.cost.flops, m.score.value) for m in result.front}
    assert all(len(step.population) == 8 for step in steps)
    # With fewer survivors than the front has members, both ends of it survive.
    ends = {(m.cost.flops, m.score.value) for m in (result.front[0], result.front[-1])}
    assert ends <= set(steps[-1].population)
    assert points & set(steps[-1].population)


def test_a_cost_range_holds_for_all_that_is_evaluated(tmp_path):
    result = pareto(tmp_path, cost_range=(900_000, 1_200_000), population=12)
    costs = [entry.cost.flops for entry in entries(tmp_path)]
    assert len(costs) == result.evaluations == 60
    assert min(costs) >= 900_000 and max(costs) <= 1_200_000


def test_a_space_that_is_used_up_ends_the_search(tmp_path):
    # A range that only the smallest network is in.
    low = count(small_space().smallest(0)).flops
    result = pareto(tmp_path, cost_range=(low, low))
    assert result.evaluations == len(result.front) == 1
    assert result.hypervolume == (float(result.front[0].score.value),)


def test_it_beats_random_search_at_equal_evaluations(tmp_path):
    wins = 0
    for seed in range(10):
        found = pareto(tmp_path / f'a{seed}', seed=seed, population=24, generations=16)
        drawn = pareto(
            tmp_path / f'b{seed}', seed=seed + 100, population=found.evaluations, generations=1
        )
        assert drawn.evaluations == found.evaluations == 384
        wins += found.hypervolume[-1] > drawn.hypervolume[-1]
    assert wins >= 8


def test_equal_seeds_give_equal_bytes_and_others_do_not(tmp_path, searched):
    assert as_bytes(pareto(tmp_path / 'a')) == as_bytes(searched[0])
    assert as_bytes(pareto(tmp_path / 'b', seed=1)) != as_bytes(searched[0])


@pytest.mark.parametrize('kept', [0, 17, 39])
def test_a_cut_archive_is_replayed_to_the_identical_result(tmp_path, searched, kept):
    result, directory = searched
    lines = (directory / 'rank0000.jsonl').read_bytes().splitlines(keepends=True)
    # The header, some entries, and half of the next.
    path = tmp_path / 'rank0000.jsonl'
    path.write_bytes(b''.join(lines[: 1 + kept]) + lines[1 + kept][:40])
    evaluator = AnalyticEvaluator()
    assert as_bytes(pareto(tmp_path, evaluator)) == as_bytes(result)
    assert len(evaluator.digests) == result.evaluations - kept
    assert path.read_bytes().splitlines(keepends=True) == lines


def test_two_ranks_find_the_same(tmp_path, searched):
    results = run_ranks(2, lambda communicator: pareto(tmp_path, None, communicator))
    assert [as_bytes(result) for result in results] == [as_bytes(searched[0])] * 2


def test_latency_is_predicted_and_never_measured(tmp_path, latency_model):
    result = pareto(tmp_path / 'a', metric='latency', latency_model=latency_model)
    latencies = [member.latency for member in result.front]
    assert latencies == [latency_model.predict(member.cost) for member in result.front]
    points = [(e.outcome.value, latency_model.predict(e.cost)) for e in entries(tmp_path / 'a')]
    best = [points[i] for i in pareto_front(points)]
    assert [(m.score.value, m.latency) for m in result.front] == best
    data = json.loads(as_bytes(result))
    assert data['front'][0]['cost']['latency'] == latencies[0]
    assert data['settings']['latency_model']['a'] == latency_model.a
    again = pareto(tmp_path / 'b', metric='latency', latency_model=latency_model)
    assert as_bytes(again) == as_bytes(result)
    # Beside another cost it is told, but does not steer.
    plain = pareto(tmp_path / 'c')
    told = pareto(tmp_path / 'c', latency_model=latency_model)
    assert [m.arch for m in told.front] == [m.arch for m in plain.front]
    assert all(m.latency for m in told.front)


def test_bad_settings_are_refused_before_any_work(refuses):
    refuses(
        partial(ParetoSearch, TABLE),
        metric=['accuracy'],
        population=[1],
        generations=[0],
        mutations=[0, True, float('inf')],
        seed=[-1],
        cost_range=[5, (2e6, 1e6), (0, 1e6)],
    )
    with pytest.raises(ValueError, match='metric=latency needs a latency_model'):
        ParetoSearch(TABLE, metric='latency')
    for cost_range in ((1e9, 2e9), (1, 2)):
        with pytest.raises(ValueError, match='out of reach: networks of this space have'):
            ParetoSearch(TABLE, cost_range=cost_range)


def test_a_gap_in_the_costs_is_said(tmp_path):
    low = count(small_space().smallest(0)).flops
    with pytest.raises(ValueError, match=r'no network of .* flops was found'):
        pareto(tmp_path, cost_range=(low + 1, low + 2))


def test_scores_are_compared_exactly(tmp_path):
    class Close(AnalyticEvaluator):
        """Scores that floats cannot tell apart."""

        fingerprint = {'evaluator': 'close'}

        def evaluate(self, arch):
            score = analytic_score(arch)
            return type(score)(10**20 + score.correct, 10**21)

    result = pareto(tmp_path, Close())
    scores = [member.score.value for member in result.front]
    assert len(set(map(float, scores))) < len(set(scores))
    assert scores == sorted(scores) and Fraction(TOTAL, 1) > scores[-1]


def test_a_range_between_two_scaling_stages_is_out_of_reach():
    space = SearchSpace(
        stages=[dict(channels=8, depths=[1], kernels=[3])],
        scaling_stages=[
            dict(depth=[1], width=[1], resolution=[16]),
            dict(depth=[1], width=[3], resolution=[64]),
        ],
        stem=dict(channels=8),
        head=dict(channels=16),
        num_classes=2,
    )
    low, high = (count(space.largest(j)).flops for j in (0, 1))
    with pytest.raises(ValueError, match='no scaling leads into the range'):
        ParetoSearch(CostTable(space), cost_range=(low + 1, high - 1))


def test_no_network_exceeds_a_cap(tmp_path, latency_model):
    free = pareto(tmp_path / 'free')
    most = sorted(e.cost.params for e in entries(tmp_path / 'free'))
    cap = most[len(most) // 2]
    times = [1e9, None, latency_model.predict(TABLE.cost(small_space().smallest(2))) * 1.5]
    caps = {'params': cap, 'latency': times}
    capped = pareto(tmp_path / 'capped', caps=caps, latency_model=latency_model)
    found = entries(tmp_path / 'capped')
    assert len(found) == len(entries(tmp_path / 'free'))
    assert max(e.cost.params for e in found) <= cap < most[-1]
    assert capped.settings['caps'] == caps
    assert free.front[-1].cost.params > cap
    late = [m for m in capped.front if m.scaling_stage == 2]
    assert all(m.latency <= times[2] for m in late)


def test_a_cap_that_nothing_keeps_to_is_refused():
    with pytest.raises(ValueError, match=r'caps\.params=7 params is out of reach: .* have '):
        ParetoSearch(TABLE, caps={'params': 7})
    with pytest.raises(ValueError, match=r'caps=\[\] must be a dict'):
        ParetoSearch(TABLE, caps=[])


def test_a_range_and_a_cap_that_exclude_each_other_say_so(tmp_path):
    high, low = TABLE.range('flops')[1], TABLE.range('params')[0]
    with pytest.raises(ValueError, match=r'(was found within caps=|leads into both)'):
        pareto(tmp_path, cost_range=(0.9 * high, 2 * high), caps={'params': low})


def test_latencies_below_zero_are_refused():
    model = LatencyModel(-1e3, 2e-5, 3e-7, LatencySetting(), (), {}, 0)
    with pytest.raises(ValueError, match=r'latency_model predicts -.* ms in this space'):
        ParetoSearch(TABLE, metric='latency', latency_model=model)
