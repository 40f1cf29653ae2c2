"""Reports on work dirs: finished, running, of an older version, cut and damaged."""

import json
import os
import runpy
import shutil
import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from small_searches import BUDGET, SPACE, TOLERANCE, mcea, pareto, structure_line, write_run

from mmscale.apis.reports.report import report as draw
from mmscale.apis.reports.run_files import read_run
from mmscale.arch import HierarchicalSampler, SearchSpace
from mmscale.arch.origin import Origin
from mmscale.cost import CostTable, count
from mmscale.search import (
    MCEA,
    Archive,
    Entry,
    Failure,
    FamilyFitness,
    Feasibility,
    pareto_front,
)
from mmscale.search.entry import key_of, make_line
from mmscale.search.noise import with_error

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def searched(tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('report') / 'searched'
    return work_dir, write_run(work_dir, mcea)


@pytest.fixture
def copied(searched, tmp_path):
    return Path(shutil.copytree(searched[0], tmp_path / 'searched'))


@pytest.fixture
def report_tool(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, 'argv', ['report.py', *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(str(ROOT / 'tools' / 'report.py'), run_name='__main__')
        except SystemExit as error:
            code = error.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


def line_of(axes, label):
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return [list(map(float, values)) for values in line.get_data()]


# ------------------------------------------------------------------ a finished search


def test_every_part_of_a_search_is_drawn(searched):
    work_dir, result = searched
    report = draw(str(work_dir))
    family = [f'arch_scaling_stage_{m.scaling_stage}' for m in result.family]
    assert list(report.pictures) == [
        'chain', 'population', 'front', 'evaluated', 'archs', *family
    ]  # fmt: skip
    assert report.missing == []
    assert ('networks evaluated', f'{result.evaluations}') in report.facts


def test_the_chain_is_the_results(searched):
    work_dir, result = searched
    state = draw(str(work_dir)).pictures['chain'].axes[0]
    steps = [step for step in result.chain if step.kind == 'scaling search']
    x, y = line_of(state, 'after scaling search')
    assert x == [step.evaluations for step in steps]
    assert y == pytest.approx([100 * float(step.fitness) for step in steps])


def test_the_population_is_the_historys(searched):
    work_dir, result = searched
    fitness, cost = draw(str(work_dir)).pictures['population'].axes
    generations = [f for step in result.chain for f in step.history]
    numbers, best = line_of(fitness, 'best')
    assert numbers == list(range(1, len(generations) + 1))
    assert best == pytest.approx([100 * float(f) for f in generations])
    # The band of allowed costs is the budget's.
    (band,) = [p for p in cost.patches if p.get_label() == 'allowed cost']
    low, high = band.get_y(), band.get_y() + band.get_height()
    assert (low, high) == pytest.approx((BUDGET * (1 - TOLERANCE), BUDGET * (1 + TOLERANCE)))
    (dots,) = cost.collections
    assert low <= dots.get_offsets()[:, 1].min() and dots.get_offsets()[:, 1].max() <= high


def test_the_front_is_that_of_the_archive(searched):
    work_dir, result = searched
    (axes,) = draw(str(work_dir)).pictures['front'].axes
    entries = list(Archive.open_existing(work_dir / 'archive').entries())
    points = axes.collections[0].get_offsets()
    assert len(points) == len(entries) == result.evaluations
    (front,) = [line for line in axes.lines if line.get_label().startswith('not dominated')]
    for cost, score in zip(*front.get_data(), strict=True):
        assert not [e for e in entries if e.cost.flops < cost and 100 * e.outcome.value >= score]
    assert line_of(axes, 'the family found')[0] == [m.cost.flops for m in result.family]


def test_what_was_evaluated_is_counted(searched):
    work_dir, result = searched
    entries = list(Archive.open_existing(work_dir / 'archive').entries())
    size, depth, _, kernels, *binned = draw(str(work_dir)).pictures['evaluated'].axes
    counted = {
        label.get_text(): bar.get_height()
        for label, bar in zip(size.get_xticklabels(), size.patches, strict=True)
    }
    resolutions = [entry.arch.resolution for entry in entries]
    assert counted == {f'{r}': resolutions.count(r) for r in set(resolutions)}
    assert sum(bar.get_height() for bar in depth.patches) == result.evaluations
    blocks = sum(len(entry.arch.blocks) for entry in entries)
    assert sum(bar.get_height() for bar in kernels.patches) == blocks
    for axes in binned:
        assert sum(bar.get_height() for bar in axes.patches) == result.evaluations


RICH = dict(
    stages=[
        dict(channels=[8, 16], depths=[1, 2], kernels=[3, 5], kind=['mbconv', 'conv']),
        dict(channels=16, depths=[1, 2], kernels=[3], expands=[2, 4], se=[False, True]),
    ],
    stem=dict(channels=8),
    head=dict(channels=16),
    num_classes=2,
    resolution=[16, 24],
)


def test_all_choices_of_the_space_are_counted(tmp_path):
    def search(scorer, on_step):
        table = CostTable(SearchSpace(**RICH))
        family = FamilyFitness(Feasibility(table, sum(table.range()) / 2, tolerance=0.6))
        return MCEA(family, 6, 3, rounds=2).run(scorer, on_step)

    result = write_run(tmp_path, search)
    (tmp_path / 'config.py').write_text(f'model = dict(backbone=dict(space={RICH!r}))')
    report = draw(str(tmp_path))
    panels = {axes.get_title(loc='left'): axes for axes in report.pictures['evaluated'].axes}
    archs = [entry.arch for entry in Archive.open_existing(tmp_path / 'archive').entries()]
    blocks = [block for arch in archs for block in arch.blocks]
    for title, words in (
        ('Kernels of all blocks', [f'{block.kernel}' for block in blocks]),
        ('Kinds of all blocks', [block.kind for block in blocks]),
        ('SE of all blocks', ['no' if block.se is None else '0.25' for block in blocks]),
        ('Channels', [f'{i}:{w}' for arch in archs for i, w in enumerate(arch.widths, 1)]),
    ):
        labels = [label.get_text() for label in panels[title].get_xticklabels()]
        heights = [bar.get_height() for bar in panels[title].patches]
        counted = dict(zip(labels, heights, strict=True))
        assert counted == {word: words.count(word) for word in set(words)}
    assert 'Expansions of all blocks' in panels and 'Activations of all blocks' not in panels
    # One scaling stage: a network, no family, and no multipliers below the chain.
    assert len(report.pictures['chain'].axes) == 1
    shown = with_error(result.fitness, result.fitness_error)
    assert ('fitness', shown) in report.facts and '±' in dict(report.facts)['best score']
    labels = report.pictures['front'].axes[0].get_legend_handles_labels()[1]
    assert 'the network found' in labels
    assert not any('famil' in f'{line}' or 'scaling' in f'{line}' for line in report.facts)


def test_a_pareto_search_has_its_front_and_hypervolume(tmp_path):
    result = write_run(tmp_path / 'pareto', pareto)
    report = draw(str(tmp_path / 'pareto'))
    assert {'population', 'front', 'evaluated', 'archs'} <= set(report.pictures)
    assert 'chain' not in report.pictures
    axes, volume = report.pictures['front'].axes
    (front,) = [line for line in axes.lines if line.get_label().startswith('not dominated')]
    assert list(front.get_xdata()) == [member.cost.params for member in result.front]
    assert list(volume.lines[0].get_ydata()) == list(result.hypervolume)
    assert axes.get_xlabel() == 'parameters'
    drawn = [name for name in report.pictures if name.startswith('arch_')]
    assert len(drawn) == min(6, len(result.front)) and drawn[0] == 'arch_front_0'


# ------------------------------------------------------------------ a running search


@pytest.mark.parametrize('cut', [0.05, 0.5, 0.97])
def test_a_running_search_is_drawn_as_far_as_it_is(copied, cut):
    (copied / 'result.json').unlink()
    archive, history = copied / 'archive' / 'rank0000.jsonl', copied / 'history.jsonl'
    for path in (archive, history):
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * cut)])
    before = contents(copied)
    report = draw(str(copied))
    assert 'result.json: the search has not finished' in report.missing
    whole = archive.read_bytes().count(b'\n') - 1
    assert ('networks evaluated', f'{whole}') in report.facts
    events = [json.loads(line) for line in history.read_bytes().splitlines(True)
              if line.endswith(b'\n')]  # fmt: skip
    assert ('chain' in report.pictures) == any(e['kind'] != 'generation' for e in events)
    assert ('population' in report.pictures) == any(e['kind'] == 'generation' for e in events)
    assert len(report.pictures['front'].axes[0].collections[0].get_offsets()) == whole
    assert any(name.startswith('arch_front_') for name in report.pictures)
    assert contents(copied) == before


def test_an_archive_that_is_just_begun_is_no_error(tmp_path, searched):
    header = (searched[0] / 'archive' / 'rank0000.jsonl').read_bytes().splitlines(True)[0]
    (tmp_path / 'archive').mkdir()
    (tmp_path / 'archive' / 'rank0000.jsonl').write_bytes(header)
    shutil.copy(searched[0] / 'history.jsonl', tmp_path)
    report = draw(str(tmp_path))
    assert 'chain' in report.pictures and 'front' not in report.pictures
    assert any('no network was evaluated yet' in sentence for sentence in report.missing)


@pytest.mark.parametrize('content', [None, b'', b'{"checksum":"0b95'])
def test_a_search_that_has_nothing_yet_says_so(tmp_path, content):
    (tmp_path / 'archive').mkdir()
    if content is not None:
        (tmp_path / 'archive' / 'rank0000.jsonl').write_bytes(content)
    report = draw(str(tmp_path))
    assert not report.pictures and ('networks evaluated', '0') in report.facts
    assert len(report.missing) == 4  # result, chain, population, front


def test_damaged_lines_are_left_out_and_said(copied):
    history, archive = copied / 'history.jsonl', copied / 'archive' / 'rank0000.jsonl'
    lines = history.read_bytes().splitlines(True)
    history.write_bytes(b''.join([lines[0], b'{"kind": "gen\n', *lines[1:]]))
    lines = archive.read_bytes().splitlines(True)
    lines[3] = lines[3].replace(b'correct', b'corrupt')
    archive.write_bytes(b''.join(lines))
    report = draw(str(copied))
    left_out = 'history.jsonl: 1 damaged lines are left out; line 2: expected an object'
    assert any(sentence.startswith(left_out) for sentence in report.missing)
    assert any('line 4: dropped' in sentence for sentence in report.missing)


def test_of_very_many_networks_a_sample_and_the_fronts_are_read(searched, monkeypatch):
    work_dir, result = searched
    whole = read_run(work_dir)
    monkeypatch.setattr('mmscale.apis.reports.records._MOST_RECORDS', 7)
    run = read_run(work_dir)
    sample, all_of_them = run.records.evaluated, whole.records.evaluated
    assert 7 <= len(sample) < len(all_of_them) == run.records.number == result.evaluations
    known = {record.digest: record for record in all_of_them}
    assert all(known[record.digest] == record for record in sample)
    fronts = {}
    for name, records in (('whole', all_of_them), ('sample', sample)):
        points = [(record.score, record.cost['flops']) for record in records]
        fronts[name] = {points[i] for i in pareto_front(points)}
    assert fronts['whole'] == fronts['sample']
    report = draw(str(work_dir))
    assert ('networks evaluated', f'{result.evaluations}') in report.facts
    assert 'front' in report.pictures and 'evaluated' in report.pictures
    assert any('networks evaluated are drawn' in sentence for sentence in report.missing)


def test_entries_without_their_arch_are_left_out(copied):
    header, line, *_ = (copied / 'archive' / 'rank0000.jsonl').read_text().splitlines(True)
    entry, key = json.loads(line)['entry'], key_of(header.encode())
    crafted = [
        make_line('entry', {**entry, 'digest': f'{i:064x}', 'arch': arch}, key)
        for i, arch in enumerate(['AAAA', entry['arch']])
    ]
    path = copied / 'archive' / 'rank0000.jsonl'
    path.write_text(f'{header}{line}' + ''.join(f'{line}\n' for line in crafted))
    report = draw(str(copied))
    assert ('networks evaluated', '3') in report.facts
    assert [text for text in report.missing if 'dropped' in text] == [
        f'{path}, line 3: dropped, an arch that cannot be unpacked: Error -3 while decompressing '
        'data: unknown compression method',
        f'{path}, line 4: dropped, its arch is another than its digest says',
    ]


def test_what_could_not_be_scored_is_counted_and_left_out(copied):
    arch = SearchSpace(**SPACE).smallest()
    failures = ['out of memory: 1 GiB', 'logits that are not finite', 'out of memory: 2 GiB']
    header, *lines = (copied / 'archive' / 'rank0000.jsonl').read_text().splitlines(True)
    for number, reason in enumerate(failures):
        entry = json.loads(Entry(arch, count(arch), Failure(reason)).to_line())['entry']
        entry['digest'] = f'{number:064x}'
        lines.append(make_line('entry', entry, key_of(header.encode())) + '\n')
    (copied / 'archive' / 'rank0000.jsonl').write_text(''.join([header, *lines]))
    result = json.loads((copied / 'result.json').read_text())
    result['scaling_stages'][0]['score'] = None
    (copied / 'result.json').write_text(json.dumps(result))
    report = draw(str(copied))
    assert '2 networks could not be scored: out of memory' in report.missing
    assert '1 networks could not be scored: logits that are not finite' in report.missing
    (axes,) = report.pictures['front'].axes
    assert len(line_of(axes, 'the family found')[0]) == 1


# ------------------------------------------------------------------ a search by gradient


def test_widths_over_time(report_tool, tmp_path):
    lines = [structure_line(10, 8, 90), '{"iteration": 20', structure_line(30, 6, 54), '{"iter']
    (tmp_path / 'structure.jsonl').write_text('\n'.join(lines))
    report = draw(str(tmp_path))
    assert ('flops over the budget', '-10.00%') in report.facts
    assert len(report.missing) == 1
    assert report.missing[0].startswith('structure.jsonl: 1 damaged lines are left out; line 2')
    above, below = report.pictures['structure'].axes[:2]
    assert above.lines[1].get_ydata().tolist() == [90, 54]
    assert below.get_yticklabels()[0].get_text() == 'stem: 6 of 16'
    assert report_tool(tmp_path)[0] == 0
    names = {path.name for path in (tmp_path / 'report').iterdir()}
    assert names == {'structure.png', 'structure.svg'}


def test_one_line_of_widths_is_no_picture_yet(tmp_path):
    (tmp_path / 'structure.jsonl').write_text(structure_line(10, 8, 90) + '\n')
    report = draw(str(tmp_path))
    assert not report.pictures
    assert report.missing == ['structure: structure.jsonl has one line, two make a picture']


# ------------------------------------------------------------------ a super-supernet


@pytest.fixture
def supernet(tmp_path):
    """A work dir as a training leaves it, with a scalars file that is being written."""
    config = Config(
        dict(
            model=dict(
                type='mmscale.SuperNetClassifier',
                mode='sandwich',
                warmup_iters=30,
                warmup_scaling_stage=1,
                backbone=dict(type='mmscale.SuperNet', space=SPACE),
            ),
            custom_hooks=[
                dict(type='mmscale.HierarchicalSamplerHook', distribution='inverse_budget')
            ],
            randomness=dict(seed=5),
            train_cfg=dict(by_epoch=False, max_iters=400),
        )
    )
    folder = tmp_path / 'supernet'
    (folder / '20260101' / 'vis_data').mkdir(parents=True)
    config.dump(str(folder / 'supernet_digits.py'))
    scalars = ''.join(json.dumps(dict(loss=1.0, step=step)) + '\n' for step in (100, 200, 250))
    (folder / '20260101' / 'vis_data' / 'scalars.json').write_text(scalars + '{"loss": 1.0, "st')
    (folder / 'last_checkpoint').write_text('/elsewhere/iter_200.pth')
    return folder


def test_sampling_is_what_the_sampler_drew(supernet):
    report = draw(str(supernet))
    assert list(report.pictures) == ['sampling'] and report.missing == []
    sampler = HierarchicalSampler(
        SearchSpace(**SPACE), 5, 'inverse_budget', warmup_iters=30, warmup_scaling_stage=1
    )
    draws = [sampler.draw(i) for i in range(250)]
    axes = report.pictures['sampling'].axes[0]
    stages = [draw.scaling_stage for draw in draws]
    assert [bar.get_height() for bar in axes.patches] == [stages.count(0), stages.count(1)]
    assert list(axes.lines[0].get_ydata()) == pytest.approx([220 * 2 / 3, 220 / 3 + 30])


def test_a_config_is_read_and_never_executed(supernet, tmp_path):
    victim = tmp_path / 'victim'
    config = supernet / 'supernet_digits.py'
    text = config.read_text()
    config.write_text(
        f'open({str(victim)!r}, "w").close()\n{text}\n'
        f'other = __import__("os").system("touch {victim}")\nnumber = 3\n'
    )
    run = read_run(supernet)
    assert run.is_supernet and run.config['number'] == 3 and 'other' not in run.config
    assert run.config['model'] == Config.fromfile(_without_code(config)).model.to_dict()
    victim.unlink(missing_ok=True)
    draw(str(supernet))
    assert not victim.exists()


def _without_code(path):
    lines = [line for line in path.read_text().splitlines() if 'victim' not in line]
    plain = path.with_name('plain_config.py')
    plain.write_text('\n'.join(lines))
    text = plain.parent / 'elsewhere' / plain.name
    text.parent.mkdir()
    plain.rename(text)
    return str(text)


def test_a_training_without_a_seed_or_iteration_says_so(supernet):
    config = supernet / 'supernet_digits.py'
    whole = config.read_text()
    config.write_text(whole.replace('seed=5', 'deterministic=True'))
    assert 'no seed' in draw(str(supernet)).missing[-1]
    config.write_text(whole)
    shutil.rmtree(supernet / '20260101')
    (supernet / 'last_checkpoint').unlink()
    report = draw(str(supernet))
    assert 'no iteration was logged' in report.missing[-1] and not report.pictures


# ------------------------------------------------------------------ the tool


def test_the_tool_writes_png_and_svg_and_says_so(report_tool, copied):
    before = contents(copied)
    code, output, errors = report_tool(copied)
    assert (code, errors) == (0, '')
    assert 'fitness of the family' in output and 'chain, population' in output
    assert str(copied / 'report') in ''.join(output.split())
    written = {path: data for path, data in contents(copied).items() if path not in before}
    assert {path: contents(copied)[path] for path in before} == before
    names = {path.name for path in written}
    assert all(path.parent == copied / 'report' for path in written)
    assert {f'{path.stem}{suffix}' for path in written for suffix in ('.png', '.svg')} == names
    for path, data in written.items():
        assert data.startswith(b'\x89PNG' if path.suffix == '.png' else b'<?xml')
    # Equal pictures are equal files, so that a report in a repository does not change by itself.
    assert report_tool(copied)[0] == 0
    assert {path: path.read_bytes() for path in written} == written


def test_the_tool_draws_a_network(report_tool, searched, tmp_path):
    arch = tmp_path / 'some_arch.json'
    searched[1].family[1].arch.save(arch, Origin('mine.py', 'FashionMNIST'))
    for target, origin in ((arch, 'mine.py, data: FashionMNIST'), ('ScaleNet-S1', '')):
        out = tmp_path / 'out'
        code, printed, _ = report_tool(target, '--out', out)
        assert code == 0 and origin in printed
        assert {path.name for path in out.iterdir()} == {'arch.png', 'arch.svg'}


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda d: None, 'nothing to report'),
        (lambda d: d.rmdir(), 'is no folder; arch='),
        (lambda d: (d / 'result.json').write_text('{"sch'), 'result.json: not a JSON file'),
        (lambda d: (d / 'result.json').write_text('[]'), 'result.json: expected an object'),
        (
            lambda d: (d / 'result.json').write_text(
                '{"schema": 1, "settings": {}, "scaling_stages": [], "chain": [3]}'
            ),
            'chain[0]: expected an object',
        ),
        (
            lambda d: (d / 'result.json').write_text('{"chain": [], "settings": 4}'),
            'missing key schema',
        ),
        (
            lambda d: [(d / 'archive').mkdir(), (d / 'archive/rank0000.jsonl').write_text('x\n')],
            'no archive, or a damaged one',
        ),
    ],
)
def test_mistakes_are_one_line(report_tool, tmp_path, make, message):
    folder = tmp_path / 'run'
    folder.mkdir()
    make(folder)
    code, output, errors = report_tool(folder)
    assert (code, output) == (2, '')
    assert message in errors and errors.startswith('error: ') and errors.count('\n') == 1
    assert not (folder / 'report').exists()


def test_a_folder_that_cannot_be_written_is_one_line(report_tool, tmp_path):
    (tmp_path / 'file').write_text('')
    code, _, errors = report_tool('scalenet-s0', '--out', tmp_path / 'file' / 'out')
    assert code == 2 and errors.count('\n') == 1 and 'file/out' in errors


def test_the_tools_environment_is_not_needed(searched, monkeypatch):
    # No GUI backend is asked for, whatever the environment says.
    monkeypatch.setitem(os.environ, 'MPLBACKEND', 'TkAgg')
    assert draw(str(searched[0])).pictures
