"""The comparison of families: every network in it, errors by the textbook, a plot that exists."""

import io
import json
import math

import pytest
from rich.console import Console

from mmscale.apis.compare.families import (
    FAMILIES,
    average,
    collect,
    confidence,
    plot,
    ranking,
    ranking_table,
    standard_error,
    table,
)
from mmscale.arch import Genotype, Scaling, apply_scaling, get_arch
from mmscale.cost import count
from mmscale.errors import UsageError
from mmscale.search import FamilyMember, Score
from mmscale.search.result import SCHEMA

STRATEGY = (Scaling(), Scaling(1.2, 1.1, 1.25), Scaling(1.5, 1.3, 1.5))
DRAWN = ('drawn1', 'drawn2')


def accuracies_of(images, **accuracies):
    return {'accuracies': accuracies, 'images': images}


TESTED = {
    'searched S0': accuracies_of(400, scratch=[50.0, 51.0, 52.0], warm=[60.0]),
    'searched S1': accuracies_of(4000, scratch=[80.0, 80.0]),
    'compound S0': accuracies_of(400, scratch=[50.0, 51.0, 52.0], warm=[60.0]),
    'random S1': accuracies_of(4000, scratch=[100.0], warm=[70.0]),
    'drawn1 S1': accuracies_of(4000, warm=[30.0]),
    'drawn2 S1': accuracies_of(4000, warm=[40.0, 42.0]),
}


@pytest.fixture
def work_dir(tmp_path):
    """Families of three networks, as searches leave them."""
    for i, family in enumerate((*FAMILIES, *DRAWN)):
        members = []
        for j, scaling in enumerate(STRATEGY):
            arch = apply_scaling(get_arch('scalenet-s0'), scaling)
            score = Score(900 + 100 * i + 10 * j, 2000)
            member = FamilyMember(j, Genotype((0,)), scaling, arch, count(arch), score)
            members.append(member.to_json())
        (tmp_path / family).mkdir()
        result = {'schema': SCHEMA, 'settings': {}, 'scaling_stages': members}
        text = json.dumps({**result, 'convention': 'mmscale'})
        (tmp_path / family / 'result.json').write_text(text, encoding='utf-8')
    return tmp_path


def test_collect_has_every_network_with_its_cost_and_scores(work_dir):
    rows = collect(work_dir, TESTED, drawn=2)
    keys = [(row['family'], row['scaling_stage']) for row in rows]
    assert keys == [(family, j) for family in (*FAMILIES, *DRAWN) for j in range(3)]
    assert collect(work_dir, TESTED) == rows[:9]
    for i, row in enumerate(rows):
        arch = apply_scaling(get_arch('scalenet-s0'), STRATEGY[i % 3])
        cost = count(arch)
        assert (row['flops'], row['params'], row['acts']) == (cost.flops, cost.params, cost.acts)
        assert row['resolution'] == arch.resolution
        assert row['blocks'] == sum(arch.depths)
        assert (row['depth'], row['width']) == (STRATEGY[i % 3].depth, STRATEGY[i % 3].width)
        assert row['supernet_score'] == pytest.approx(45 + 5 * (i // 3) + 0.5 * (i % 3))
        assert row['supernet_images'] == 2000
        tested = TESTED.get(f'{row["family"]} S{row["scaling_stage"]}', {})
        assert row['test_accuracies'] == tested.get('accuracies', {})
        assert row['test_images'] == tested.get('images')
        assert row['network'] == arch.digest
    assert json.loads(json.dumps(rows)) == rows


def test_the_standard_error_is_that_of_a_share():
    images = [1] * 37 + [0] * 63
    mean = sum(images) / len(images)
    variance = sum((image - mean) ** 2 for image in images) / len(images)
    assert standard_error(37, 100) == pytest.approx(100 * math.sqrt(variance / 100))
    assert standard_error(0, 100) == standard_error(100, 100) == 0


def test_the_interval_is_students():
    # 4.303 is the 97.5 % point of t with two degrees of freedom.
    assert confidence([1.0, 2.0, 3.0]) == pytest.approx(4.30265 / math.sqrt(3))
    assert confidence([2.0, 2.0]) == 0
    assert confidence([2.0]) is confidence([]) is None


def printed(part):
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(part)
    return console.export_text()


def test_the_table_shows_every_network_and_the_random_ones_mean(work_dir):
    text = printed(table(collect(work_dir, TESTED, drawn=2)))
    lines = [line.split() for line in text.splitlines()]
    lines = [line for line in lines if line[1:2] == ['0'] or line[:1] in (['0'], ['1'], ['2'])]
    assert [line[0] for line in lines if line[0] in FAMILIES] == list(FAMILIES)
    # 1.96 * sqrt(0.45 * 0.55 / 2000) = 2.18 %; 4.303 / sqrt(3) = 2.48.
    assert lines[0][-3:] == ['45.0±2.2', '51.0±2.5', '60.0']
    assert lines[1][-3:] == ['45.5±2.2', '80.0±0.0', '-']
    assert lines[2][-3:] == ['46.0±2.2', '-', '-']
    assert lines[4][-3:] == ['50.5±2.2', '100.0', '70.0']
    flops = count(apply_scaling(get_arch('scalenet-s0'), STRATEGY[2])).flops
    assert f'{flops / 1e6:.2f}' in lines[2]
    # Of two families, 60.5 and 65.5 or 30 and 41: t is 12.706 with one degree of freedom.
    mean = next(line for line in text.splitlines() if ' 1 ' in line and '35.5' in line).split()
    assert mean[-3:] == ['63.0±31.8', '-', '35.5±69.9']
    assert 'random, mean' in text
    assert printed(table(collect(work_dir, {}))).count('±') == 10


def test_the_mean_of_random_families_has_one_value_of_each(work_dir):
    rows = average(collect(work_dir, TESTED, drawn=2))
    assert [row['scaling_stage'] for row in rows] == [0, 1, 2]
    assert rows[1]['test_accuracies'] == {'scratch': [], 'warm': [30.0, 41.0]}
    assert rows[1]['supernet_scores'] == pytest.approx([60.5, 65.5])
    assert rows[1]['flops'] == count(apply_scaling(get_arch('scalenet-s0'), STRATEGY[1])).flops
    assert average(collect(work_dir, TESTED)) == []


def row_of(stage, network, score, **accuracies):
    return {
        'scaling_stage': stage,
        'network': network,
        'supernet_score': score,
        'test_accuracies': accuracies,
    }


def test_the_ranking_is_kendalls_tau_of_distinct_networks():
    rows = [
        row_of(0, 'a', 60.0, scratch=[50.0, 52.0], warm=[70.0]),
        # Of one network there is one pair, whatever families it is in.
        row_of(0, 'a', 60.0, scratch=[50.0, 52.0], warm=[70.0]),
        row_of(0, 'b', 61.0, scratch=[54.0], warm=[69.0]),
        row_of(0, 'c', 62.0, scratch=[53.0], warm=[68.0]),
        row_of(0, 'd', None, scratch=[99.0]),
        row_of(1, 'e', 60.0, warm=[70.0]),
        row_of(2, 'f', 60.0),
    ]
    found = ranking(rows)
    assert [row['scaling_stage'] for row in found] == [0, 1]
    # Of the pairs a-b, a-c, b-c two agree and one does not.
    assert found[0]['tau'] == {'scratch': pytest.approx(1 / 3), 'warm': pytest.approx(-1)}
    assert found[0]['networks'] == {'scratch': 3, 'warm': 3}
    assert found[1]['tau'] == {'scratch': None, 'warm': None}
    assert found[1]['networks'] == {'scratch': 0, 'warm': 1}
    text = printed(ranking_table(rows))
    assert '0.33 (3)' in text and '-1.00 (3)' in text and 'S2' not in text


@pytest.mark.parametrize('tested', [TESTED, {}], ids=['some tested', 'none tested'])
def test_the_plot_is_a_png(work_dir, tested):
    path = work_dir / 'families é.png'
    plot(collect(work_dir, tested, drawn=2), path)
    content = path.read_bytes()
    assert content.startswith(b'\x89PNG\r\n\x1a\n') and content[12:16] == b'IHDR'
    assert len(content) > 5000


def changed(text, *path, value):
    data = node = json.loads(text)
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return json.dumps(data)


def test_a_network_without_a_score_has_none_in_table_and_plot(work_dir):
    path = work_dir / 'random' / 'result.json'
    path.write_text(changed(path.read_text(), 'scaling_stages', 1, 'score', value=None))
    rows = collect(work_dir, TESTED)
    assert rows[4]['supernet_score'] is rows[4]['supernet_images'] is None
    assert ' - ' in next(line for line in printed(table(rows)).splitlines() if ' 100.0 ' in line)
    plot(rows, work_dir / 'families.png')


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (None, 'No such file'),
        (lambda text: text[:-20], 'not a JSON file'),
        (lambda text: '{}', 'missing key schema, settings'),
        (lambda text: changed(text, 'scaling_stages', value=[]), 'scaling_stages must have 1'),
        (lambda text: changed(text, 'scaling_stages', 1, 'cost', value=-1), 'cost: expected an'),
        (lambda text: changed(text, 'kind', value='pareto'), 'missing key front'),
        (
            lambda text: json.dumps(
                {**json.loads(text), 'kind': 'pareto', 'front': json.loads(text)['scaling_stages']}
            ).replace('"scaling_stages"', '"other"'),
            'has no scaling_stages: it is not the result of a search for a family',
        ),
        (lambda text: text.replace('"convention"', '"other"'), 'has no convention'),
    ],
)  # fmt: skip
def test_a_missing_or_damaged_family_is_one_line(work_dir, damage, message):
    path = work_dir / 'random' / 'result.json'
    text = path.read_text()
    path.unlink()
    if damage:
        path.write_text(damage(text))
    with pytest.raises((UsageError, FileNotFoundError)) as error:
        collect(work_dir, TESTED)
    assert str(path) in str(error.value) and message in str(error.value)
    assert '\n' not in str(error.value)
