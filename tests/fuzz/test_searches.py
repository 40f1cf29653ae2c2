"""Bad settings of searches, and bad files that searches leave."""

import contextlib
import copy
import io
import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from small_inputs import SPACE

from mmscale.apis.compare.families import FAMILIES, collect
from mmscale.apis.exports.source import find_source
from mmscale.apis.networks import build_network
from mmscale.apis.reports.report import report as draw
from mmscale.apis.scaling.searched import read_family
from mmscale.apis.search import dry_run, plan_search, profile
from mmscale.arch import Arch

ROOT = Path(__file__).resolve().parents[2]
STRATEGY = [
    dict(depth=1.0, width=1.0, resolution=1.0),
    dict(depth=1.2, width=1.2, resolution=1.2),
]
BUDGETS = dict(budget=16_000, metric='flops', tolerance=0.3, weights=[1, 1])
EVOLUTION = dict(population=4, generations=2, mutations=1.0, halving=False)
SEARCHES = {
    'MCEALoop': dict(BUDGETS, **EVOLUTION, rounds=1, num_base_models=2),
    'EvolutionLoop': dict(BUDGETS, **EVOLUTION, strategy=STRATEGY),
    'SeparateSearchLoop': dict(BUDGETS, **EVOLUTION, rounds=1, num_base_models=2),
    'ScalingLoop': dict(BUDGETS, base=[1] * 6, halving=True),
    'RandomSearchLoop': dict(BUDGETS, evaluations=6),
    'FamilyLoop': dict(BUDGETS, base=[1] * 6, strategy=STRATEGY),
    'ParetoLoop': dict(EVOLUTION, metric='flops', cost_range=[1_000, 200_000]),
    'SearchLoop': dict(
        BUDGETS, search=dict(EVOLUTION, type='mmscale.MCEA', rounds=1, num_base_models=2)
    ),
}
for settings in SEARCHES.values():
    settings['seed'] = 0
SEARCHES['ParetoLoop'].pop('halving')


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv('MPLBACKEND', 'Agg')


def config_of(settings, space=SPACE, loop='MCEALoop'):
    settings = copy.deepcopy(settings)
    if isinstance(settings, dict):
        settings['type'] = f'mmscale.{loop}'
    backbone = dict(type='mmscale.SuperNet', space=copy.deepcopy(space))
    return Config(dict(model=dict(backbone=backbone), test_cfg=settings))


@pytest.mark.parametrize('loop', SEARCHES)
def test_settings_of_searches(fuzz, loop):
    fuzz(0.025, SEARCHES[loop], lambda data: profile(config_of(data, loop=loop)))


def test_search_spaces_of_searches(fuzz):
    def use(data):
        plan_search(config_of(data.get('test_cfg'), data.get('space')))

    fuzz(0.04, dict(space=SPACE, test_cfg=SEARCHES['MCEALoop']), use)


@pytest.fixture(scope='module')
def search(tmp_path_factory):
    """The work dir of a finished search, with weights."""
    folder = tmp_path_factory.mktemp('search') / 'work'
    config = config_of(SEARCHES['MCEALoop'])
    config.work_dir = str(folder)
    dry_run(config)
    arch = json.loads((folder / 'result.json').read_text())['scaling_stages'][0]['arch']
    (folder / 'weights').mkdir()
    weights = build_network(Arch.from_json(arch)).state_dict()
    torch.save({'state_dict': weights}, folder / 'weights' / 'scaling_stage_0.pth')
    for name in ('dry_run.log', 'random'):
        path = folder / name
        if path.is_file():
            path.unlink()
    return folder


@pytest.fixture
def result(search, inputs):
    """A copy of its files in the folder that is fuzzed, and the result's content."""
    for path in search.iterdir():
        if path.name != 'random':
            copy_ = shutil.copytree if path.is_dir() else shutil.copy
            copy_(path, inputs / path.name)
    return json.loads((search / 'result.json').read_text())


def scale(inputs):
    """tools/scale.py in this process."""
    tool = runpy.run_path(str(ROOT / 'tools' / 'scale.py'), run_name='scale')
    old = sys.argv
    sys.argv = ['scale.py', '--from-search', str(inputs / 'result.json'), '--factor=4', '--json']
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            tool['main']()
    finally:
        sys.argv = old


def compare(inputs):
    """As if all families were the one that is read."""
    for family in FAMILIES:
        folder = inputs.parent / family
        if not folder.is_symlink():
            folder.symlink_to(inputs)
    collect(inputs.parent, {})


READERS = {
    'family': (0.08, lambda inputs: read_family(inputs / 'result.json').rule()),
    'report': (0.02, lambda inputs: draw(str(inputs))),
    'export': (0.03, lambda inputs: find_source(inputs / 'result.json')),
    'scale': (0.02, scale),
    'compare': (0.02, compare),
}


@pytest.mark.parametrize('reader', READERS)
def test_results(fuzz, result, inputs, unchanged, reader):
    share, read = READERS[reader]

    def use(data):
        (inputs / 'result.json').write_text(json.dumps(data))
        with unchanged(inputs):
            read(inputs)

    fuzz(share, result, use)


@pytest.mark.parametrize('reader', ['family', 'report', 'export'])
def test_results_as_texts(fuzz, result, inputs, unchanged, reader):
    share, read = READERS[reader]

    def use(text):
        (inputs / 'result.json').write_bytes(text if isinstance(text, bytes) else text.encode())
        with unchanged(inputs):
            read(inputs)

    fuzz(share / 2, result, use, text=json.dumps)


def test_histories(fuzz, result, inputs, unchanged):
    lines = [json.loads(line) for line in (inputs / 'history.jsonl').read_text().splitlines()]
    (inputs / 'result.json').unlink()

    def use(data):
        text = ''.join(f'{json.dumps(line)}\n' for line in data)
        (inputs / 'history.jsonl').write_text(text)
        with unchanged(inputs):
            draw(str(inputs))

    fuzz(0.01, lines, use, name='history.jsonl')
