"""Reports on work dirs that somebody has prepared: what is damaged is left out, and said."""

import base64
import json
import os
import shutil
import xml.etree.ElementTree as ElementTree
import zlib
from pathlib import Path

import pytest
from small_searches import mcea, structure_line, write_run

from mmscale.apis.reports.report import Report
from mmscale.apis.reports.report import report as draw
from mmscale.apis.reports.run_files import read_run
from mmscale.errors import UsageError
from mmscale.search.entry import key_of, make_line
from mmscale.search.result_files import read_result

SCALING = dict(depth=1.0, width=1.0, resolution=1.0)
GENERATION = dict(
    kind='generation', step='round 1', round=1, number=1, evaluations=3, population=[[3, 0.5]]
)
STEP = dict(
    kind='search', round=0, evaluations=3, fitness=0.5, strategy=[SCALING], history=[0.5]
)  # fmt: skip


@pytest.fixture(scope='module')
def searched(tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('hostile') / 'searched'
    write_run(work_dir, mcea)
    return work_dir


@pytest.fixture
def copied(searched, tmp_path):
    return Path(shutil.copytree(searched, tmp_path / 'searched'))


@pytest.fixture
def events(tmp_path):
    """Writes events as a history."""

    def write(*lines):
        text = ''.join(f'{json.dumps(line)}\n' for line in lines)
        (tmp_path / 'history.jsonl').write_text(text)
        return tmp_path

    return write


def packed(arch):
    return base64.b64encode(zlib.compress(json.dumps(arch).encode())).decode()


def rewrite(work_dir, change):
    """Changes the second entry of an archive, and its checksum with it."""
    path = work_dir / 'archive' / 'rank0000.jsonl'
    header, first, line, *others = path.read_text().splitlines()
    entry = json.loads(line)['entry']
    arch = json.loads(zlib.decompress(base64.b64decode(entry['arch'])))
    entry = change(entry, arch)
    path.write_text(
        '\n'.join([header, first, make_line('entry', entry, key_of(header.encode())), *others])
        + '\n'
    )


RECORDS = {
    'no arch': (lambda e, a: {k: v for k, v in e.items() if k != 'arch'}, 'not an archive entry'),
    'not packed': (lambda e, a: {**e, 'arch': 'AAAA'}, 'cannot be unpacked'),
    'no stages': (lambda e, a: {**e, 'arch': packed({'resolution': 3})}, 'missing key'),
    'of another digest': (
        lambda e, a: {**e, 'arch': packed({**a, 'resolution': 99})},
        'another than its digest says',
    ),
}


@pytest.mark.parametrize('kind', RECORDS)
def test_records_of_an_archive_are_checked(kind, copied):
    change, message = RECORDS[kind]
    whole = len(read_run(copied).records.evaluated)
    rewrite(copied, change)
    (copied / 'result.json').unlink()
    run = read_run(copied)
    assert len(run.records.evaluated) == whole - 1
    (sentence,) = [one for one in run.missing if 'rank0000.jsonl, line 3: dropped' in one]
    assert message in sentence and '\n' not in sentence and len(sentence) < 400


def test_of_many_damaged_lines_some_are_told(copied, events, tmp_path, monkeypatch):
    archive = copied / 'archive' / 'rank0000.jsonl'
    archive.write_text(archive.read_text() + 'x\n' * 1000)
    run = read_run(copied)
    assert len(run.missing) == 6 and 'archive: 6 more warnings like these' in run.missing
    (copied / 'history.jsonl').write_text('x\n' * 5000)
    run = read_run(copied)
    assert 'history.jsonl: what follows line 1000 is left out' in run.missing
    monkeypatch.setattr('mmscale.apis.reports.records._MOST_DRAWN_BLOCKS', 20)
    run = read_run(copied)
    assert 0 < len(run.records.evaluated) < run.records.number
    assert any('networks are read, as they are so large' in one for one in run.missing)


EVENTS = {
    'nothing': [GENERATION | dict(population=[[0, 0], [0, 0]])],
    'tiny and huge': [GENERATION | dict(population=[[5e-324, 0], [2**53, 2**53], [0, 0]])],
    'formulas': [
        GENERATION | dict(step='$\\frac{$ x_$y$ \x00\x1b[2J\ud800'),
        GENERATION | dict(step='$$'),
        STEP | dict(kind='_$\\frac{$\x00\ud800[/x]</svg>'),
    ],
    'many': [STEP | dict(kind=f'{i}', evaluations=i, strategy=[SCALING] * 500) for i in range(40)]
    + [GENERATION | dict(step=f'{i}') for i in range(500)],
}


@pytest.mark.parametrize('kind', EVENTS)
@pytest.mark.filterwarnings('error')
def test_histories_that_are_allowed_are_drawn(kind, events, tmp_path):
    out = tmp_path / 'out'
    report = draw(events(*EVENTS[kind]), out)
    assert 'population' in report.pictures
    for path in out.glob('*.svg'):
        ElementTree.parse(path)
    assert str(report).replace('\n', '').isprintable()


@pytest.mark.parametrize(
    'line',
    [
        STEP | dict(fitness=1e308),
        STEP | dict(kind='k' * 5000),
        STEP | dict(strategy=[SCALING] * 5000),
        GENERATION | dict(population=[[1e308, 1]]),
        GENERATION | dict(population=[[10**300, 1]]),
        GENERATION | dict(step=['x']),
    ],
    ids=lambda line: line['kind'][:10],
)
def test_events_out_of_all_bounds_are_left_out(line, events):
    report = draw(events(line, STEP))
    (sentence,) = [one for one in report.missing if 'damaged' in one]
    assert '1 damaged lines are left out; line 1' in sentence and len(sentence) < 300
    assert 'chain' in report.pictures


def test_structures_of_many_groups_and_long_names(tmp_path):
    line = json.loads(structure_line(1, 8, 90))
    names = {f'group {i}_$x$': i for i in range(3000)} | {'$\\frac{$\x00\ud800' * 10**4: [0, 1]}
    lines = [line, *({**line, 'iteration': i, 'structure': names} for i in (7, 3, 8, 9))]
    text = ''.join(f'{json.dumps(line)}\n' for line in lines)
    (tmp_path / 'structure.jsonl').write_text(text)
    report = draw(tmp_path, tmp_path / 'out')
    assert report.missing == [
        'structure.jsonl: 2 lines are left out, of other groups or not in order'
    ]
    assert report.pictures['structure'].get_figheight() < 50


@pytest.mark.parametrize(
    'name',
    ['history.jsonl', 'structure.jsonl', 'c.py', 'last_checkpoint', 'x/vis_data/scalars.json'],
)
def test_files_of_any_size_and_kind(name, copied):
    path = copied / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.touch()
    os.truncate(path, 20 << 30)
    assert read_run(copied).records.evaluated
    path.unlink()
    path.symlink_to(path.name)  # to itself
    assert read_run(copied).records.evaluated
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UsageError, match='is not a regular file'):
        read_run(copied)


def test_results_out_of_all_bounds(searched, tmp_path):
    path = tmp_path / 'result.json'
    data = json.loads((searched / 'result.json').read_text())
    member = data['scaling_stages'][0]
    for change, message in (
        ({'fitness': 1e308}, 'fitness=1e+308'),
        ({'scaling_stages': [member] * 5000}, '1 to 1000 entries'),
        ({'scaling_stages': [member | {'scaling_stage': 2**52}]}, 'scaling_stage=45035996273704'),
        ({'x': [{}] * 2**21}, 'holds more than 2,097,152 values'),
    ):  # fmt: skip
        path.write_text(json.dumps(data | change))
        with pytest.raises(UsageError, match=r'result\.json') as caught:
            read_result(path)
        assert message in str(caught.value)
    stages = [member | {'scaling_stage': j} for j in range(100)]
    path.write_text(json.dumps(data | {'scaling_stages': stages}))
    assert 'archs: 16 of the 100 of the family' in draw(tmp_path).missing


@pytest.mark.parametrize(
    'setting',
    [
        'model = 3',
        'train_dataloader = [1]',
        'data_preprocessor = "x"',
        'randomness = "x"',
        'test_cfg = dict(type=[1], budget="x", metric=["y"], cost_range=3)',
        'test_cfg = [3]',
    ],
)
def test_configs_beside_a_search_may_be_anything(setting, events):
    folder = events(STEP, GENERATION)
    (folder / 'c.py').write_text(setting)
    assert {'chain', 'population'} <= set(draw(folder).pictures)


def test_what_is_missing_is_safe_to_print():
    shown = str(Report('\x1b[2J[/x]', missing=['\x1b[2J\ud800[red]']))
    assert shown.replace('\n', '').isprintable() and '[/x]' in shown and '[red]' in shown
