"""Several budgets and caps at once, against counts of the decoded networks."""

import json
import re

import numpy as np
import pytest
from analytic_problem import BUDGET, all_genotypes, make_scorer, small_space
from hypothesis import given, settings
from hypothesis import strategies as st
from random_spaces import spaces

from mmscale.arch import Scaling
from mmscale.cost import Costs, CostTable, LatencyModel, LatencySetting, count
from mmscale.engine.search_loop import build_search
from mmscale.search import FamilyFitness, Feasibility, GivenFamily, RandomSearch
from mmscale.search.limits import Limits
from mmscale.search.profile import profile_search

MODEL = LatencyModel(0.5, 2e-5, 3e-7, LatencySetting(), (), dict(flops=1, params=1, acts=1), 0)
TABLE = CostTable(small_space())
SCALED = Scaling(1.2, 1.2, 1.0), Scaling(1.4, 1.1, 1.5)


def cost_in(metric, arch):
    cost = count(arch)
    return MODEL.predict(cost) if metric == 'latency' else getattr(cost, metric)


@settings(max_examples=12)
@given(space=spaces(most=120), seed=st.integers(0, 2**32))
def test_masks_equal_counts_of_the_decoded_networks(space, seed):
    rng = np.random.default_rng(seed)
    genes = all_genotypes(space)
    stages = len(space.scaling_stages)
    strategy = tuple(space.scalings(j)[-1] for j in range(stages))
    metrics = rng.permutation(['flops', 'params', 'acts', 'latency']).tolist()
    costs = {
        metric: np.array(
            [[cost_in(metric, space.decode(row, s)) for s in strategy] for row in genes]
        )
        for metric in metrics
    }
    middle = costs[metrics[0]][rng.integers(len(genes)), 0].item()
    other = [costs[metrics[1]][rng.integers(len(genes)), j].item() for j in range(stages)]
    cap = max(np.quantile(costs[metrics[2]], 0.8).item(), costs[metrics[2]].min(axis=0).max())
    last = np.quantile(costs[metrics[3]][:, -1], 0.7).item()
    tolerance = 0.3
    feasibility = Feasibility(
        CostTable(space),
        {metrics[0]: middle, metrics[1]: other},
        tolerance=tolerance,
        caps={metrics[2]: cap, metrics[3]: [None] * (stages - 1) + [last]},
        latency_model=MODEL,
    )
    base = costs[metrics[0]][:, 0]
    expected = []
    for j in range(stages):
        wanted = base * 2**j if j else middle
        met = np.abs(costs[metrics[0]][:, j] / wanted - 1) <= tolerance
        met &= np.abs(costs[metrics[1]][:, j] / other[j] - 1) <= tolerance
        met &= costs[metrics[2]][:, j] <= cap
        expected.append(met & (costs[metrics[3]][:, j] <= last) if j == stages - 1 else met)
    assert feasibility.base_feasible(genes).tolist() == expected[0].tolist()
    for j in range(1, stages):
        scaled = feasibility.scaled_feasible(genes, j, strategy[j])
        assert scaled.tolist() == expected[j].tolist()
    feasible = np.all(expected, axis=0)
    assert feasibility.feasible(genes, strategy).tolist() == feasible.tolist()
    drawn = feasibility.draw(np.random.default_rng(0), len(genes), strategy)
    assert {tuple(row) for row in drawn} == {tuple(row) for row in genes[feasible]}


@settings(max_examples=12)
@given(space=spaces(most=120, scaling_stages=2))
def test_ranges_of_latencies_are_exact(space):
    limits = Limits(CostTable(space), latency_model=MODEL)
    for j in range(2):
        scaling = space.scalings(j)[-1]
        every = [cost_in('latency', space.decode(row, scaling)) for row in all_genotypes(space)]
        found = limits.range('latency', scaling)
        assert found == pytest.approx((min(every), max(every)), rel=1e-12)


def family(**limits):
    budget = limits.pop('budget', BUDGET)
    weights = limits.pop('weights', None)
    return FamilyFitness(Feasibility(TABLE, budget, tolerance=0.1, **limits), weights)


def test_a_search_keeps_to_all_of_them(tmp_path):
    caps = dict(params=[None, 24_000, 30_000], latency=4.0)
    limited = family(caps=caps, budget=dict(flops=BUDGET, acts=36e3), latency_model=MODEL)
    result = RandomSearch(limited, 30).run(make_scorer(tmp_path))
    costs = [member.cost for member in result.family]
    assert abs(costs[0].flops / BUDGET - 1) <= 0.1 and abs(costs[0].acts / 36e3 - 1) <= 0.1
    for j in (1, 2):
        assert abs(costs[j].flops / (2**j * costs[0].flops) - 1) <= 0.1
        assert costs[j].params <= caps['params'][j]
    assert all(MODEL.predict(cost) <= 4.0 for cost in costs)
    data = json.loads(json.dumps(result.to_json()))['settings']
    assert (data['budget'], data['metric'], data['caps']) == (BUDGET, 'flops', caps)
    assert data['budgets'] == dict(flops=BUDGET, acts=36e3)
    assert data['latency_model']['b'] == MODEL.b
    # Without the caps the same search finds networks beyond them.
    free = RandomSearch(family(), 30).run(make_scorer(tmp_path)).family
    assert free[2].cost.params > 30_000


def test_latency_may_be_what_grows(tmp_path):
    limited = family(budget=dict(latency=1.3), latency_model=MODEL)
    result = RandomSearch(limited, 30).run(make_scorer(tmp_path))
    found = [MODEL.predict(member.cost) for member in result.family]
    assert abs(found[0] / 1.3 - 1) <= 0.1
    assert all(abs(found[j] / (2**j * found[0]) - 1) <= 0.1 for j in (1, 2))
    assert result.chain[-1].cost == pytest.approx(found[0])


def test_one_budget_is_written_as_ever():
    assert family(budget=dict(flops=BUDGET)).settings == family().settings == {
        'budget': BUDGET, 'metric': 'flops', 'tolerance': 0.1, 'weights': [0, 1, 1],
    }  # fmt: skip


def test_one_scaling_stage_alone_keeps_its_limits():
    alone = family(caps=dict(params=[16_000, None, 30_000])).alone(2).feasibility
    genes = all_genotypes(small_space())
    strategy = Scaling(), Scaling(), SCALED[1]
    params = [TABLE.costs(genes, s).params for s in (Scaling(), SCALED[1])]
    expected = (params[0] <= 16_000) & (params[1] <= 30_000)
    unlimited = family().alone(2).feasibility.feasible(genes, strategy)
    assert 0 < (expected & unlimited).sum() < unlimited.sum()
    assert (alone.feasible(genes, strategy) == (expected & unlimited)).all()


@pytest.mark.parametrize(
    ('limits', 'message'),
    [
        (dict(caps=dict(speed=1)), "caps='speed' is not one of flops, params, acts, latency"),
        (dict(budget=dict(speed=1)), "budget='speed' is not one of"),
        (dict(budget={}), 'budget={} must be a dict with one or more of flops, params'),
        (dict(caps=3), 'caps=3 must be a dict with one or more of'),
        (dict(caps=dict(params=-1)), 'caps.params=-1 must be a number above 0'),
        (dict(caps=dict(params=[1, 2])), r'caps.params=\[1, 2\] must be a number, or a list with'),
        (dict(caps=dict(params=[None, 'a', 2])), r"caps.params\[1\]='a' must be a number"),
        (dict(budget=dict(flops=[1, 2, 3])), r'budget.flops=\[1, 2, 3\] must be a number: the fi'),
        (dict(budget=dict(flops=6e5), metric='params'), "metric='params' beside budget="),
        (dict(caps=dict(latency=2)), 'caps.latency needs a latency_model'),
        (dict(budget=dict(flops=6e5, latency=2)), 'budget.latency needs a latency_model'),
        (dict(budget=1.2, metric='latency'), "metric='latency' needs a latency_model"),
        (dict(latency_model=3), 'latency_model=3 must be the path'),
        (dict(latency_model='absent.json'), 'latency_model: .*No such file'),
        (
            dict(caps=dict(params=3000)),
            'caps.params=3,000 params is out of reach: base models of this space have 4,',
        ),
        (
            dict(caps=dict(params=[None, 3000, None])),
            r'caps.params\[1\]=3,000 params is out of reach: networks of scaling stage 1 have 4,',
        ),
        (
            dict(budget=dict(flops=6e5, acts=9e9)),
            'budget.acts=9,000,000,000 acts is out of reach: base models of this space have',
        ),
        (
            dict(caps=dict(latency=0.6), latency_model=MODEL),
            'caps.latency=0.6 ms is out of reach: base models of this space have .* ms',
        ),
        (
            dict(caps=dict(flops=1.9e6)),
            'caps.flops=1,900,000 flops is out of reach: the budget of scaling stage 2 is at '
            'least 1,944,000 flops',
        ),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(limits, message):
    given = {'budget': BUDGET, 'tolerance': 0.1, **limits}
    with pytest.raises(ValueError, match=message):
        build_search(TABLE, 0, dict(type='mmscale.RandomSearch', evaluations=9), **given)


def test_the_limit_that_nothing_meets_is_named():
    rng = np.random.default_rng(0)
    least = int(TABLE.costs(all_genotypes(small_space())).params.min())
    capped = family(caps=dict(params=[least, None, None])).feasibility
    assert not len(capped.draw(rng, 1))
    params = TABLE.costs(all_genotypes(small_space())[family().feasibility.base_feasible(
        all_genotypes(small_space()))]).params  # fmt: skip
    assert capped.explain_empty((Scaling(),), rng) == (
        f'scaling stage 0: no base model meets the budget and the cap of params: wanted at most '
        f'{least:,} params, nearest within reach {params.min():.4g}'
    )
    capped = family(caps=dict(params=[None, None, 20_000])).feasibility
    pool = capped.draw(rng, 50)
    assert not capped.admitted(pool, 2).any()
    expected = 'scaling stage 2: none of its .* brings a base model to its budget and the cap of'
    assert re.match(expected, capped.explain_unscalable(pool))
    with pytest.raises(ValueError, match=r'stage 2: no scaling brings .* and the cap of params'):
        capped.scalings_of(pool[0], 2)
    assert capped.explain_base(pool[:1]) == 'base meets all budgets and caps'
    row = all_genotypes(small_space())[:1]
    assert capped.explain_base(row).startswith('base has ')


def test_the_profile_shows_and_counts_them():
    limited = family(
        budget=dict(flops=BUDGET, acts=[36e3, None, 1e5]), caps=dict(params=45_000, latency=4),
        latency_model=MODEL,
    )  # fmt: skip
    report = profile_search(TABLE, limited, 10)
    assert report.limits == (
        'budget of acts: 36,000 acts, -, 100,000 acts by scaling stage',
        'cap of params: 45,000 params for every network',
        'cap of latency: 4 ms for every network',
    )
    assert report.limits[1] in str(report)
    genes = all_genotypes(small_space())
    exact = limited.feasibility.base_feasible(genes).mean()
    assert abs(report.stages[0].admitted.value - exact) <= 4 * report.stages[0].admitted.error


def test_a_given_family_says_what_it_misses(tmp_path):
    base = family().feasibility.draw(np.random.default_rng(0), 1)[0].tolist()
    strategy = [dict(depth=1, width=1, resolution=1)] * 3
    given_family = GivenFamily(family(caps=dict(params=[5000, None, None])), base, strategy)
    with pytest.warns(UserWarning, match='scaling stage 0 of the given family misses caps.params'):
        given_family.run(make_scorer(tmp_path))


def test_caps_alone_are_of_any_network():
    genes = all_genotypes(small_space())
    limits = Limits(TABLE, caps=dict(params=[8000, None, 9000]))
    costs = TABLE.costs(genes)
    assert ((limits.excess(costs, 0) == 0) == (costs.params <= 8000)).all()
    assert (limits.excess(costs, 1) == 0).all()
    single = Limits(TABLE, dict(flops=BUDGET), tolerance=0.1, grows=False)
    near = np.abs(costs.flops / BUDGET - 1) <= 0.1
    assert all(((single.excess(costs, j) == 0) == near).all() for j in range(3))
    assert single.excess(Costs(*(c[:0] for c in costs)), 0).shape == (0,)
