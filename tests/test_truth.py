"""The benchmark of searches on true accuracies: what it reads, counts and prints."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / 'benchmarks'))

import truth
from truth_methods import Problem, Run, curve
from truth_table import read_truth

from mmscale.errors import UsageError

SPACE = """
space = dict(
    num_classes=10, act='relu', stem=dict(channels=[8, 16], stride=1), resolution=16,
    stages=[dict(channels=[8, 16, 24], stride=2, depths=[1, 2], kernels=[3, 5], expand=3)],
    head=dict(channels=32),
)
"""


@pytest.fixture
def write(tmp_path):
    """Writes a table of the small space."""
    space = tmp_path / 'space.py'
    space.write_text(SPACE)

    def written(*lines):
        table = tmp_path / 'table.csv'
        table.write_text('\n'.join(lines) + '\n')
        return table, space

    return written


@pytest.fixture(scope='module')
def macro():
    return read_truth(truth.TABLE, truth.SPACE)


def test_macro_is_read_as_its_authors_have_it(macro):
    assert len(macro.genes) == 3969 and macro.is_complete
    assert {'flops', 'params'} <= macro.counted
    assert macro.accuracies.max() == pytest.approx(93.1267)


@pytest.mark.parametrize(
    ('head', 'rows'),
    [
        # Genes: stem, depth, channels, kernel of the first block and of the second.
        ('arch,acc', ['0:1:2:0:1,50', '1:0:0:1:0,60']),
        ('arch,acc', ['8|2|24|3|5,50', '16|1|8|5|5,60']),
        ('stem,depth_0,channels_0,kernel_0_0,kernel_0_1,acc', ['8,2,24,3,5,.5', '16,1,8,5,3,.6']),
        ('a,b,c,d,e,val_acc,latency', ['0,1,2,0,1,50,3', '1,0,0,1,1,60,4']),
        ('kernels,stem,depth,width,acc', ['3-5,8,2,24,50', '5-3,16,1,8,60']),
    ],
)
def test_ways_to_say_a_network(write, head, rows):
    found = read_truth(*write(head, *rows))
    assert found.genes.tolist() == [[0, 1, 2, 0, 1], [1, 0, 0, 1, 0]]
    assert found.accuracies.tolist() == [50, 60]
    assert not found.is_complete and 'infeasible' in found.notes[-1]


def test_rows_of_one_network_count_once(write):
    found = read_truth(*write('arch,acc', '1-0-0-1-0,60', '1-0-0-1-1,50'))
    assert found.accuracies.tolist() == [55] and 'each counts once' in found.notes[-2]


@pytest.mark.parametrize(
    ('lines', 'named'),
    [
        (['arch,acc', '01201,x'], 'column acc, line 2'),
        (['arch,foo', '01201,5'], 'no column of an accuracy'),
        (['arch,acc', '012,5'], '3 entries; allowed are 5'),
        (['arch,acc', '01209,5'], "column arch, entry 5: '9' is no kernel_0_1: allowed"),
        (['stem,acc', '8,5'], 'no columns for the genes depth_0'),
        (['arch,acc', '01201,500'], 'neither percents nor fractions'),
    ],
)
def test_what_cannot_be_read_is_named(write, lines, named):
    with pytest.raises(UsageError, match=named.replace('(', r'\(')):
        read_truth(*write(*lines))


def test_no_network_is_counted_twice_and_none_outside_the_budget(macro):
    problem = Problem(macro, {'flops': 45e6})
    run = Run(problem, 3, seed=0)
    inside, outside = problem.allowed[0], np.flatnonzero(problem.excess)[0]
    for row in (inside, inside, outside):
        run.ask(macro.genes[row])
    assert run.found == [macro.accuracies[inside]]


@pytest.mark.parametrize('method', ['ours', 'random', 'regularised evolution'])
def test_regret_falls_towards_the_best_within_the_budget(macro, method):
    found = curve(Problem(macro, {'flops': 30e6}), method, 20, 0)
    assert len(found) == 20 and (np.diff(found) <= 0).all() and found[-1] >= 0


def test_ours_asks_for_nothing_that_has_no_row(macro):
    some = read_truth(truth.TABLE, truth.SPACE)
    some.genes, some.accuracies = macro.genes[::50], macro.accuracies[::50]
    some.costs = {name: values[::50] for name, values in macro.costs.items()}
    assert curve(Problem(some, {}), 'ours', 60, 0)[-1] == 0


def test_prints_objects_of_the_default_budgets(monkeypatch, capsys):
    words = ['--json', '--repeats', '2', '--methods', 'random']
    monkeypatch.setattr(sys, 'argv', ['truth.py', *words])
    assert truth.main() == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row['budget'], row['evaluations']) for row in rows] == [
        (budget, n) for budget in truth.BUDGETS for n in (50, 100, 200)
    ]
    assert all({'method', 'regret', 'standard_error'} <= set(row) for row in rows)


def test_unknown_costs_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['truth.py', '--budgets', 'latency=3'])
    with pytest.raises(SystemExit):
        truth.main()
    assert 'the costs of this table are' in capsys.readouterr().err


def test_costs_with_units_and_the_right_accuracy_are_found(write):
    head = 'arch,train_acc,x_valid_acc,x_test_acc,FLOPs (M),params_mb'
    rows = ['0:1:2:0:1,99,60,50,7,2', '1:0:0:1:0,99,70,55,9,3']
    known = read_truth(*write(head, *rows))
    assert sorted(known.accuracies) == [50, 55]
    assert sorted(known.costs['flops']) == [7e6, 9e6]
    assert not any('(M)' in name for name in known.costs)
