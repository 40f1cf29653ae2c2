import pytest

from mmscale import scale
from mmscale.apis.scaling.budgets import Budget, read_budget
from mmscale.cost import count


@pytest.mark.parametrize(
    ('budget', 'expected'),
    [
        (4e9, Budget('flops', 4e9)),
        ('4e9', Budget('flops', 4e9)),
        ('4G', Budget('flops', 4e9)),
        ('flops=4G', Budget('flops', 4e9)),
        ('flops=1.6g', Budget('flops', 1.6e9)),
        ('params=25 M', Budget('params', 25e6)),
        ('acts=.5K', Budget('acts', 500)),
        ('latency=3.5', Budget('latency', 3.5)),
        ('4x', Budget('flops', 4, True)),
        ('params=0.5X', Budget('params', 0.5, True)),
        ({'acts': '10M'}, Budget('acts', 1e7)),
        ({'flops': 4e9}, Budget('flops', 4e9)),
    ],
)
def test_budgets_as_users_write_them(budget, expected):
    assert read_budget(budget) == expected
    assert read_budget(budget, expected.metric) == expected


@pytest.mark.parametrize(
    ('budget', 'message'),
    [
        ('flops=4Q', "budget='flops=4Q': '4Q' is not a number, as 4e9, with K, M or G"),
        ('flops=', "'' is not a number"),
        ('flops=G', "'G' is not a number"),
        ('flops=1,6e9', "'1,6e9' is not a number"),
        ('flops=-3', r'budget=-3\.0 must be a number above 0'),
        ('flops=nan', 'budget=nan must be a number above 0'),
        ('flops=1e999', 'budget=inf must be a number above 0'),
        ('flops=0x', 'must be a number above 0'),
        ('mult-adds=3', "metric='mult-adds' is not one of flops, params, acts, latency"),
        ({}, 'must have one metric'),
        (True, 'budget=True must be a number above 0'),
        (float('nan'), 'must be a number above 0'),
    ],
)
def test_what_is_no_budget_is_refused(budget, message):
    with pytest.raises(ValueError, match=message):
        read_budget(budget)


def test_a_budget_is_of_the_metric_that_is_asked_for():
    with pytest.raises(ValueError, match='of another metric than metric=params'):
        read_budget('flops=4G', 'params')


def test_a_budget_needs_no_mode():
    (network,) = scale('RegNetY-400MF', budget='flops=1.6G')
    assert network.matched and network.convention == 'pycls'
    assert network.achieved == pytest.approx(1.6e9, rel=0.01)
    assert scale('regnety_004', 'dWr', budget=1.6e9) == [network]
    (doubled,) = scale('RegNetY-400MF', budget='2x')
    base = count('RegNetY-400MF', 'pycls').flops
    assert doubled.achieved == pytest.approx(2 * base, rel=0.01) and doubled.factor == 2
    assert 'convention pycls' in repr(network)
