"""The comparison of families: every network in it, errors by the textbook, a plot that exists."""

import io
import json
import math

import pytest
from rich.console import Console

from mmscale.apis.compare.families import FAMILIES, collect, plot, standard_error, table
from mmscale.arch import Genotype, Scaling, apply_scaling, get_arch
from mmscale.cost import count
from mmscale.errors import UsageError
from mmscale.search import FamilyMember, Score
from mmscale.search.result import SCHEMA

STRATEGY = (Scaling(), Scaling(1.2, 1.1, 1.25), Scaling(1.5, 1.3, 1.5))
TESTED = {
    'searched S0': {'accuracy': 50.0, 'images': 400},
    'searched S1': {'accuracy': 80.0, 'images': 4000},
    'compound S0': {'accuracy': 50.0, 'images': 400},
    'random S1': {'accuracy': 100.0, 'images': 4000},
}


@pytest.fixture
def work_dir(tmp_path):
    """Three families of three networks, as searches leave them."""
    for i, family in enumerate(FAMILIES):
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
    rows = collect(work_dir, TESTED)
    keys = [(row['family'], row['scaling_stage']) for row in rows]
    assert keys == [(family, j) for family in FAMILIES for j in range(3)]
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
        assert row['test_accuracy'] == tested.get('accuracy')
        assert row['test_images'] == tested.get('images')
    assert json.loads(json.dumps(rows)) == rows


def test_the_standard_error_is_that_of_a_share():
    images = [1] * 37 + [0] * 63
    mean = sum(images) / len(images)
    variance = sum((image - mean) ** 2 for image in images) / len(images)
    assert standard_error(37, 100) == pytest.approx(100 * math.sqrt(variance / 100))
    assert standard_error(0, 100) == standard_error(100, 100) == 0


def test_the_table_shows_every_network_with_1_96_standard_errors(work_dir):
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table(collect(work_dir, TESTED)))
    text = console.export_text()
    lines = [line.split() for line in text.splitlines() if '±' in line][1:]
    assert len(lines) == 9
    assert [line[0] for line in lines if line[0] in FAMILIES] == list(FAMILIES)
    # Families in their order; the last two columns are the super-supernet's score and the test.
    columns = [(line[-2], line[-1]) for line in lines]
    # 1.96 * sqrt(0.45 * 0.55 / 2000) = 2.18 %, 1.96 * sqrt(0.5 * 0.5 / 400) = 4.9 %.
    assert columns[0] == ('45.0±2.2', '50.0±4.9')
    assert columns[1] == ('45.5±2.2', '80.0±1.2')
    assert columns[2] == ('46.0±2.2', '-')
    assert columns[4] == ('50.5±2.2', '100.0±0.0')
    assert columns[6][1] == '50.0±4.9' and columns[8][1] == '-'
    flops = count(apply_scaling(get_arch('scalenet-s0'), STRATEGY[2])).flops
    assert f'{flops / 1e6:.2f}' in lines[2]


@pytest.mark.parametrize('tested', [TESTED, {}], ids=['some tested', 'none tested'])
def test_the_plot_is_a_png(work_dir, tested):
    path = work_dir / 'families é.png'
    plot(collect(work_dir, tested), path)
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
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table(rows))
    assert ' - ' in next(line for line in console.export_text().splitlines() if '100.0±0' in line)
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
