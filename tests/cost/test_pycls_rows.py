"""Named networks and scaling rules against complexities that pycls computed.

``tests/data/pycls_complexity.csv`` was computed with the unmodified code of pycls at commit
5719de6, which adds bias additions to flops and max-pool outputs to acts: unscaled networks
(strategy ``base``) and four of them scaled by every rule. EfficientNet-B7 and RegNetZ-4GF are not
networks of its zoo: the former has the coefficients of its authors, the latter the parameters
of ClassyVision and a head of width 1000. ``tests/data/regnetz_published.csv`` adds what was
published for RegNetZ: billions of flops, millions of params and of acts, as printed in arXiv
2106.14881, Table 2 (the flops of RegNetZ-16GF in arXiv 2104.11227, Table 17).
"""

import csv
import json
from pathlib import Path

import pytest

from mmscale.arch import Arch, apply_scaling, get_arch, group_widths, preset_name, scaling_rule
from mmscale.cost import count

DATA = Path(__file__).parents[1] / 'data'


def read_rows(name):
    with (DATA / name).open(encoding='utf-8', newline='') as file:
        return list(csv.DictReader(file))


ROWS = read_rows('pycls_complexity.csv')


def scaled(row):
    base = get_arch(row['base'])
    if row['strategy'] == 'base':
        return base
    return apply_scaling(base, scaling_rule(row['strategy']).scaling(int(row['scale'])), 'pycls')


def facts(arch):
    cost = count(arch, 'pycls')
    groups = group_widths(arch)
    return {
        'depths': list(arch.depths),
        'widths': list(arch.widths),
        'group_ws': None if groups is None else list(groups),
        'resolution': arch.resolution,
        'flops': cost.flops,
        'params': cost.params,
        'acts': cost.acts,
        'stem_w': arch.stem.out_channels,
        'head_w': arch.head.channels,
    }


def wanted(row, keys):
    return {key: json.loads(row[key] or 'null') for key in keys if key in row}


@pytest.mark.parametrize('base', sorted({row['base'] for row in ROWS}))
def test_scaled_network_is_the_one_of_pycls(base):
    for row in ROWS:
        if row['base'] == base:
            found = facts(scaled(row))
            assert found == wanted(row, found), (row['strategy'], row['scale'])


def test_rows_are_all_there():
    assert len(ROWS) == 451
    families = {row['base'].partition('-')[0] for row in ROWS}
    assert families == {'EfficientNet', 'RegNetX', 'RegNetY', 'RegNetZ', 'ResNet', 'ResNeXt'}


def test_multipliers_are_those_of_pycls():
    for row in ROWS:
        if row['strategy'] == 'base':
            continue
        scaling = scaling_rule(row['strategy']).scaling(int(row['scale']))
        found = [scaling.depth, scaling.width, scaling.resolution]
        if group_widths(get_arch(row['base'])) is not None:
            found.append(scaling.width if scaling.group_width is None else scaling.group_width)
        keys = ['factor_d', 'factor_w', 'factor_r', 'factor_g'][: len(found)]
        assert found == pytest.approx([float(row[key]) for key in keys], rel=1e-15)


def test_published_regnetz():
    for row in read_rows('regnetz_published.csv'):
        factor = float(row['scale_factor'])
        arch = apply_scaling(get_arch(row['base']), scaling_rule('dWr').scaling(factor), 'pycls')
        found = facts(arch)
        assert found | wanted(row, found) == found, row['name']
        printed = (found['flops'] / 1e9, found['params'] / 1e6, found['acts'] / 1e6)
        assert '/'.join(f'{number:.1f}' for number in printed) == row['published']


def test_scaled_networks_survive_json():
    for row in {row['base']: row for row in ROWS}.values():
        arch = scaled(row)
        assert Arch.from_json(json.loads(json.dumps(arch.to_json()))) == arch
        assert preset_name(row['base'].upper())


def test_conventions_differ_by_bias_additions_and_max_pool_outputs():
    efficientnet_b0 = get_arch('efficientnet-b0')
    assert count(efficientnet_b0).flops == 385_814_752
    assert count(efficientnet_b0, 'pycls').flops - count(efficientnet_b0).flops == 10_340
    assert count(efficientnet_b0).acts == count(efficientnet_b0, 'pycls').acts
    resnet = get_arch('resnet-50')
    assert count(resnet, 'pycls').flops - count(resnet).flops == 1000
    assert count(resnet, 'pycls').acts - count(resnet).acts == 64 * 56 * 56
