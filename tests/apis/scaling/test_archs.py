"""Scaling from Python: the golden rows, matched budgets, and searched families scaled on."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_spaces import spaces

from mmscale.apis.scaling.archs import (
    find_rules,
    networks_to_time,
    plan_scaling,
    scale,
)
from mmscale.apis.scaling.bases import arch_of
from mmscale.apis.scaling.recipes import config_text
from mmscale.apis.scaling.searched import read_family
from mmscale.arch import SCALING_RULES, Rounding, Scaling, apply_scaling, get_arch
from mmscale.arch.presets import SCALENET_STRATEGY
from mmscale.cost import count
from mmscale.cost.matching import Constraints, NotReachable

ROOT = Path(__file__).parents[3]
ROWS = [
    row
    for row in csv.DictReader((ROOT / 'tests/data/pycls_complexity.csv').open(encoding='utf-8'))
    if row['strategy'] != 'base'
]


def test_every_golden_row_comes_out_exactly():
    assert len(ROWS) == 420
    for row in ROWS:
        (network,) = scale(row['base'].upper(), [row['strategy']], [float(row['scale'])])
        assert network.to_json() == {
            'name': row['base'],
            'strategy': row['strategy'],
            'factor': float(row['scale']),
            'depths': json.loads(row['depths']),
            'widths': json.loads(row['widths']),
            'group_widths': json.loads(row['group_ws']) if row['group_ws'] else None,
            'resolution': int(row['resolution']),
            'flops': int(row['flops']),
            'params': int(row['params']),
            'acts': int(row['acts']),
        }


def test_alphas_stand_in_for_the_fast_rule():
    rules = find_rules(['d', 'dWr', 'dWr_gfix'], [0.6, 0.8])
    assert [rule.name for rule in rules] == ['d', 'dWr_a0.6', 'dWr', 'dWr_a0.6_gfix', 'dWr_gfix']


def test_matched_networks_say_what_was_wanted_and_what_came_out():
    base = get_arch('RegNetY-400MF')
    (network,) = scale(base, ['dWr'], mode='matched', budget=4e9, name='mine')
    data = network.to_json()
    assert data['name'] == 'mine'
    assert data['target'] == 4e9
    assert data['achieved'] == data['flops'] == count(network.arch, 'pycls').flops
    assert data['achieved'] == pytest.approx(4e9, rel=0.01)
    assert data['factor'] == pytest.approx(4e9 / count(base, 'pycls').flops)
    two = scale(base, ['w', 'd'], [2, 3], mode='matched', metric='acts', convention='mmscale')
    assert [(n.strategy, n.factor) for n in two] == [('w', 2), ('w', 3), ('d', 2), ('d', 3)]
    for network in two:
        assert network.achieved == pytest.approx(network.factor * count(base).acts, rel=0.01)


def test_one_of_each_needs_no_list():
    assert scale('RegNetY-400MF', 'dw', 2) == scale('RegNetY-400MF', ['dw'], [2])
    assert scale('RegNetY-400MF', SCALING_RULES['dw'], 2)[0].strategy == 'dw'
    assert scale('RegNetY-400MF', alphas=0.6, factors=2)[0].strategy == 'dWr_a0.6'


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'base': 'RegNetY-40MF'}, 'near names are RegNetY-'),
        ({'strategies': ['dwW']}, "strategy='dwW' is not known"),
        ({'factors': [0]}, 'factor=0 must be a number above 0'),
        ({'factors': [2, -1]}, 'factor=-1 must be a number above 0'),
        ({'factors': []}, 'neither a factor nor a budget'),
        ({'budget': 4e9, 'mode': 'reference'}, 'budget=4e[+]09 needs mode=matched'),
        ({'budget': 4e9, 'mode': 'matched'}, 'budget=4e[+]09 and factor=2: give one of them'),
        (
            {'budget': '4 billions', 'mode': 'matched', 'factors': []},
            "budget='4 billions': '4 billions' is not a number, as 4e9, with K, M or G",
        ),
        ({'metric': 'acts', 'mode': 'reference'}, 'metric=acts needs mode=matched'),
        ({'constraints': Constraints(most_acts=5e6)}, 'most_acts=5000000.0.* needs mode=matched'),
        ({'mode': 'exact'}, "mode='exact' is not one of reference, matched"),
        ({'mode': 'matched', 'metric': 'latency'}, 'metric=latency needs a latency_model'),
        ({'mode': 'matched', 'metric': 'speed'}, "metric='speed' is not one of"),
        ({'strategies': ['d'], 'alphas': [0.5]}, 'alpha=0.5 is of dWr and dWr_gfix'),
        ({'alphas': [1.5]}, 'alpha=1.5 must be a number in 0..1'),
        ({'mode': 'matched', 'factors': [1e-6]}, 'not reachable'),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        scale(**{'base': 'RegNetX-200MF', 'factors': [2], **settings})


# ---------------------------------------------------------------- searched families


def result_of(strategy, base='scalenet-s0-search', rule='search', rounding=None, **changes):
    """What a search writes of a family, as far as it is read."""
    base = get_arch(base)
    archs = [apply_scaling(base, scaling, rule, rounding) for scaling in strategy]
    return {
        'schema': 1,
        'convention': 'mmscale',
        'settings': {'metric': 'flops', 'tolerance': 0.05},
        'scaling_stages': [
            {
                'scaling_stage': j,
                'scaling': scaling.to_json(),
                'cost': vars(count(arch)),
                'arch': arch.to_json(),
            }
            for j, (scaling, arch) in enumerate(zip(strategy, archs, strict=True))
        ],
        **changes,
    }


def written(folder, data):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / 'result.json'
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding='utf-8')
    return path


def test_a_family_is_read_with_the_way_it_was_made(tmp_path):
    path = written(tmp_path / 'mine', result_of(SCALENET_STRATEGY[:4]))
    family = read_family(path)
    assert (family.name, family.metric, family.width_rule) == ('mine', 'flops', 'search')
    assert family.strategy == SCALENET_STRATEGY[:4]
    assert read_family(Path(path).parent) == family
    assert family.rounding == Rounding('ceil', 1, 2)
    assert [f'{ratio:.2f}' for ratio in family.cost_ratios] == ['1.00', '2.25', '4.57', '8.56']
    nearest = Rounding('nearest', channel_divisor=4)
    dwr = SCALING_RULES['dwr']
    strategy = [Scaling(), dwr.scaling(3), dwr.scaling(9)]
    data = result_of(strategy, 'scalenet-s0', 'retraining', nearest)
    other = read_family(written(tmp_path / 'other', data))
    assert (other.width_rule, other.rounding.mode) == ('retraining', 'nearest')


@settings(max_examples=40)
@given(space=spaces(scaling_stages=2), seed=st.integers(0, 2**32))
def test_families_of_any_space_are_read(tmp_path_factory, space, seed):
    rng = np.random.default_rng(seed)
    base = space.decode(space.sample(rng, 1)[0])
    scalings = space.scalings(1)
    strategy = Scaling(), scalings[rng.integers(len(scalings))]
    data = result_of(strategy, base, space.rule, space.rounding)
    family = read_family(written(tmp_path_factory.mktemp('any'), data))
    for scaling, arch in zip(strategy, family.archs, strict=True):
        assert apply_scaling(base, scaling, space.rule, space.rounding) == arch
        assert apply_scaling(base, scaling, family.width_rule, family.rounding) == arch


def test_a_searched_family_is_scaled_on_to_the_true_cost(tmp_path):
    family = read_family(written(tmp_path, result_of(SCALENET_STRATEGY[:4])))
    rule = family.rule()
    for network in scale(family, factors=[16, 32]):
        assert network.achieved == count(network.arch).flops
        assert network.achieved == pytest.approx(
            network.factor * count(family.base).flops, rel=0.01
        )
        solved, fitted = network.scaling, rule.scaling(network.factor)
        assert (solved.depth, solved.width) == (fitted.depth, fitted.width)
        assert network.arch.resolution % 2 == 0
        assert network.strategy == rule.name == f'fitted-{tmp_path.name}'
    (capped,) = scale(family, factors=16, constraints=Constraints(largest_resolution=320))
    assert capped.arch.resolution <= 320
    # The resolution alone does not do it any more: the factor of the whole rule does.
    assert capped.scaling.width > rule.scaling(16).width
    assert capped.achieved == pytest.approx(capped.target, rel=0.01)
    with pytest.raises(NotReachable):
        scale(family, budget=1e3)


def test_a_found_strategy_is_one_more_rule(tmp_path):
    path = written(tmp_path / 'mine', result_of(SCALENET_STRATEGY[:4]))
    rule = read_family(path).rule()
    found, dwr = scale('RegNetY-400MF', [str(path), 'dwr'], [4])
    assert found.strategy == 'fitted-mine'
    assert found.arch == apply_scaling(get_arch('RegNetY-400MF'), rule.scaling(4), 'pycls')
    assert dwr.strategy == 'dwr'


def broken(**changes):
    def change(data):
        data.update(changes)

    return change


def in_stage(index, **changes):
    def change(data):
        data['scaling_stages'][index].update(changes)

    return change


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (broken(schema=2), 'schema=2 is not supported, expected 1'),
        (broken(convention='ours'), "convention='ours' is not one of mmscale, pycls"),
        (
            lambda data: data.update(kind='pareto', front=data['scaling_stages']),
            'a Pareto front is no family',
        ),
        (broken(settings=[]), 'settings: expected an object'),
        (broken(settings={'metric': 'time'}), "settings.metric='time' is not one of"),
        (broken(scaling_stages=[]), 'scaling_stages must have 1 to 1000 entries'),
        (broken(scaling_stages={'0': 1}), 'scaling_stages=.* must be a list'),
        (lambda data: data.pop('scaling_stages'), 'missing key scaling_stages'),
        (lambda data: data['scaling_stages'][1].pop('arch'), r'\[1\]: missing key arch'),
        (in_stage(1, scaling={'depth': 1}), r'\[1\]: scaling: missing key width, resolution'),
        (
            in_stage(1, scaling={'depth': 0, 'width': 1, 'resolution': 1}),
            r'\[1\]: scaling: depth=0 must be a number above 0',
        ),
        (in_stage(1, arch={'schema': 1}), r'\[1\]: arch: missing key'),
        (
            in_stage(1, cost={'flops': 1, 'params': 2, 'acts': 3}),
            r'\[1\]: cost.flops=1, but its arch has 799963638',
        ),
        (
            in_stage(1, scaling={'depth': 3, 'width': 1, 'resolution': 1}),
            'the scalings do not make the networks of scaling_stages of one base model',
        ),
        (
            in_stage(0, scaling={'depth': 2, 'width': 1, 'resolution': 1}),
            r'scaling_stages\[0\].scaling must be 1, 1, 1',
        ),
    ],
)
def test_a_result_that_is_none_is_refused_in_a_line(change, message, tmp_path):
    data = result_of(SCALENET_STRATEGY[:2])
    change(data)
    path = written(tmp_path, data)
    with pytest.raises(ValueError, match=message) as caught:
        read_family(path)
    assert str(path) in str(caught.value)
    assert '\n' not in str(caught.value)


def test_files_that_hold_no_result_are_refused(tmp_path):
    for content in ('{"schema": 1,', '[]', '3', '[' * 100_000):
        with pytest.raises(ValueError, match=r'not a JSON file|expected an object'):
            read_family(written(tmp_path, content))
    with pytest.raises(ValueError, match=r'nothing.json is not a file'):
        read_family(tmp_path / 'nothing.json')


@pytest.mark.slow
def test_the_arch_of_a_config_is_found():
    from mmengine.config import Config

    folder = ROOT / 'configs/scalenet'
    assert arch_of(Config.fromfile(folder / 'scalenet-s2_8xb128_in1k.py')) == get_arch(
        'scalenet-s2'
    )
    for model in (dict(backbone=dict(type='ResNet', depth=18)), dict(backbone='x'), 'x', None):
        assert arch_of(Config(dict(model=model))) is None


def test_a_handful_of_networks_to_time():
    archs = networks_to_time('regnetx-200mf')
    assert list(archs) == ['RegNetX-200MF', *(f'regnetx-200mf_{rule}_x2' for rule in 'dwr')]
    assert archs['regnetx-200mf_d_x2'].depths == (2, 2, 8, 14)
    assert len(networks_to_time()) == 12


@pytest.mark.slow
def test_a_base_may_be_a_config(tmp_path):
    named = ROOT / 'configs/scalenet/scalenet-s0_8xb128_in1k.py'
    (found,) = scale(named, 'w', 2)
    assert found.name == named.stem
    assert found.arch == scale('scalenet-s0', 'w', 2)[0].arch
    path = tmp_path / 'mine.py'
    path.write_text(
        "model = dict(type='ImageClassifier', backbone=dict(type='ResNet', depth=18))\n"
    )
    shallow, deep = scale(path, 'd', [1, 2], name='r18')
    assert deep.label == 'r18_d_x2'
    assert (shallow.network.depths, deep.network.depths) == ([2, 2, 2, 2], [4, 4, 4, 4])
    assert shallow.cost.flops < 0.6 * deep.cost.flops
    (matched,) = scale(path, 'w', mode='matched', budget=4e9, tolerance=0.1)
    assert matched.achieved == pytest.approx(4e9, rel=0.1)
    with pytest.raises(ValueError, match='constraints are for Archs'):
        scale(path, 'w', 2, mode='matched', constraints=Constraints(most_acts=5e6))
    path.write_text("model = 'ResNet'\n")
    with pytest.raises(ValueError, match='the config has no model'):
        scale(path, 'w', 2)


@pytest.mark.parametrize(
    ('source', 'preset'), [('timm:resnet50', 'ResNet-50'), ('regnety_004', 'RegNetY-400MF')]
)
def test_networks_of_timm_and_their_names_are_scaled_as_archs(source, preset):
    (network,), (expected,) = scale(source, 'dWr', 2), scale(preset, 'dWr', 2)
    assert network.arch == expected.arch


def test_a_module_that_no_arch_is_known_of_is_refused():
    message = r'vit_tiny_patch16_224 cannot be scaled: .*no Arch matches such a network of timm'
    with pytest.raises(ValueError, match=message):
        scale('timm:vit_tiny_patch16_224', 'dWr', 2)


@pytest.mark.parametrize(
    'source', ['mmpretrain::resnet/resnet18_8xb32_in1k', 'resnet18_8xb32_in1k']
)
def test_configs_that_packages_ship_are_scaled_by_their_names(source, tmp_path):
    plan = plan_scaling(source, 'w', 2)
    assert plan.base.recipe == 'mmpretrain::resnet/resnet18_8xb32_in1k.py'
    (network,) = plan.run()
    assert network.label == 'resnet18_8xb32_in1k_w_x2'
    assert network.network.backbone['base_channels'] == 88
    assert "_base_ = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'" in config_text(
        network, plan.base.recipe, tmp_path
    )


def test_only_heads_have_a_width_that_may_be_free():
    for source in ('RegNetY-400MF', 'resnet18_8xb32_in1k'):
        with pytest.raises(ValueError, match=r'head_width=free: .* has no attention heads'):
            scale(source, 'w', 2, head_width='free')
    with pytest.raises(ValueError, match="head_width='wide' is not one of kept, free"):
        scale('RegNetY-400MF', 'w', 2, head_width='wide')
