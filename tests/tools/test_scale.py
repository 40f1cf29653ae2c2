"""tools/scale.py as a user runs it."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from mmengine.config import Config

from mmscale.arch import apply_scaling, get_arch
from mmscale.arch.origin import read_origin
from mmscale.arch.presets import SCALENET_STRATEGY
from mmscale.cost import LatencyModel, LatencySetting, count

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(run_tool):
    return partial(run_tool, 'scale.py')


@pytest.fixture
def result(tmp_path):
    """What a search would write of ScaleNet's first scaling stages."""
    base = get_arch('scalenet-s0-search')
    archs = [apply_scaling(base, scaling) for scaling in SCALENET_STRATEGY[:4]]
    path = tmp_path / 'found' / 'result.json'
    path.parent.mkdir()
    stages = [
        {'scaling': scaling.to_json(), 'cost': vars(count(arch)), 'arch': arch.to_json()}
        for scaling, arch in zip(SCALENET_STRATEGY, archs, strict=False)
    ]
    settings = {'metric': 'flops'}
    data = dict(schema=1, convention='mmscale', settings=settings, scaling_stages=stages)
    path.write_text(json.dumps(data), encoding='utf-8')
    return path


@pytest.fixture
def fashion(tmp_path):
    """What a search on Fashion-MNIST leaves, its dumped config included."""
    base = get_arch(ROOT / 'configs/scalenet/archs/digits-s0.json')
    strategy = SCALENET_STRATEGY[:3]
    archs = [apply_scaling(base, scaling) for scaling in strategy]
    folder = tmp_path / 'search'
    folder.mkdir()
    stages = [
        {'scaling': scaling.to_json(), 'cost': vars(count(arch)), 'arch': arch.to_json()}
        for scaling, arch in zip(strategy, archs, strict=True)
    ]
    data = dict(schema=1, convention='mmscale', settings={}, scaling_stages=stages)
    (folder / 'result.json').write_text(json.dumps(data))
    (folder / 'fashion.py').write_text(
        'data_preprocessor = dict(mean=[72.9], std=[90.0])\ntest_dataloader = dict(dataset=dict('
        "type='mmscale.SeededDataset', dataset=dict(type='FashionMNIST', data_root='/data')))\n"
    )
    return folder / 'result.json'


def test_a_searched_family_is_trained_on_its_own_data(fashion, run, tmp_path):
    out = tmp_path / 'out'
    found = run('--from-search', fashion, '--factor', 8, '--out', out)
    assert found.returncode == 2 and not out.exists()
    assert found.stderr.count('\n') == 1
    assert 'from fashion.py, data: FashionMNIST (the nearest is for Clutt' in found.stderr
    assert '--data-config' in found.stderr
    # As the search itself would have said it.
    data = json.loads(fashion.read_text())
    told = {'config': 'fashion.py', 'dataset': 'FashionMNIST'}
    fashion.write_text(json.dumps({**data, 'origin': told}))
    (fashion.parent / 'fashion.py').unlink()
    assert (
        'data: FashionMNIST' in run('--from-search', fashion, '--factor', 8, '--out', out).stderr
    )
    own = tmp_path / 'retrain.py'
    own.write_text(
        f'_base_ = {str(ROOT / "configs/scalenet/arch-net_digits.py")!r}\n'
        "data = dict(type='FashionMNIST', data_root='/d')\n"
        'train_dataloader = dict(dataset=dict(dataset=data))\n'
    )
    found = run('--from-search', fashion, '--factor', 8, '--out', out, '--data-config', own)
    assert found.returncode == 0, found.stderr
    (written,) = out.glob('*.py')
    config = Config.fromfile(written)
    assert config.train_dataloader.dataset.dataset.type == 'FashionMNIST'
    origin = read_origin(config.model.backbone.arch)
    assert (origin.config, origin.dataset) == ('retrain.py', 'FashionMNIST')
    # So the Arch alone does not lead to other data either.
    again = run(config.model.backbone.arch, '--factor', 2, '--out', tmp_path / 'more')
    assert again.returncode == 2 and 'from retrain.py, data: FashionMNIST' in again.stderr


@pytest.fixture
def latency_model(tmp_path):
    archs = [get_arch(name) for name in ('RegNetX-200MF', 'EfficientNet-B0', 'ResNet-18')]
    costs = [count(arch) for arch in archs]
    times = [1 + 2e-6 * cost.acts + 1e-9 * cost.flops for cost in costs]
    path = tmp_path / 'latency.json'
    LatencyModel.fit(costs, times, LatencySetting(device_name='test')).save(path)
    return path


def test_json_of_several_strategies(run):
    found = run(
        *('regnety-400mf', '--strategy', 'd', '--strategy', 'dWr', '--factor', 4, '--json')
    )
    assert found.returncode == 0, found.stderr
    first, second = json.loads(found.stdout)
    # A golden row: RegNetY-400MF, dWr, 4.
    assert second == {
        'name': 'RegNetY-400MF',
        'strategy': 'dWr',
        'factor': 4,
        'depths': [1, 3, 7, 7],
        'widths': [80, 192, 352, 768],
        'group_widths': [16, 16, 16, 16],
        'resolution': 240,
        'flops': 1572517292,
        'params': 14594380,
        'acts': 7919628,
    }
    assert (first['strategy'], first['depths']) == ('d', [4, 12, 24, 24])


def test_a_table_has_a_row_per_strategy_and_the_base(run):
    found = run('EfficientNet-B0', '--alpha', 0.6, '--alpha', 0.8, '--factor', 2, '--factor', 4)
    assert found.returncode == 0, found.stderr
    assert 'EfficientNet-B0, reference, convention pycls' in found.stdout
    for text in ('base', 'dWr_a0.6', 'dWr ', 'of target', '386 M', 'group widths'):
        assert text in found.stdout
    assert max(map(len, found.stdout.splitlines())) <= 80


def test_a_budget_is_met_and_what_cannot_be_is_left_out(run):
    found = run(
        *('RegNetY-400MF', '--budget', 'params=1.5e7', '--strategy', 'w', '--strategy', 'r'),
        '--json',
    )
    assert found.returncode == 0, found.stderr
    (network,) = json.loads(found.stdout)
    assert (network['strategy'], network['target']) == ('w', 1.5e7)
    assert network['achieved'] == network['params'] == pytest.approx(1.5e7, rel=0.01)
    assert 'left out: strategy=r: params=1.5e+07 within 0.01 is not reachable' in found.stderr


def test_times_are_predicted_and_solved_for(latency_model, run):
    found = run(
        *('RegNetX-200MF', '--budget', 'latency=30', '--latency-model', latency_model, '--json')
    )
    assert found.returncode == 0, found.stderr
    (network,) = json.loads(found.stdout)
    assert network['achieved'] == network['predicted_ms'] == pytest.approx(30, rel=0.01)
    table = run(
        *('RegNetX-200MF', '--factor', 2, '--latency-model', latency_model),
        *('--measure', 'cpu', '--batch', 2, '--repeats', 1),
    ).stdout
    assert 'of target  predicted  measured' in table
    assert 'predicted: milliseconds, forward, batch 1, float32, test, 1 thread' in table
    assert 'measured: milliseconds, forward, batch 2, float32' in table


def test_a_searched_family_is_scaled_on(result, tmp_path, run):
    out = tmp_path / 'out'
    found = run('--from-search', result, '--factor', 16, '--json', '--out', out)
    assert found.returncode == 0, found.stderr
    (network,) = json.loads(found.stdout)
    assert (network['name'], network['strategy']) == ('found', 'fitted-found')
    assert network['achieved'] == pytest.approx(16 * 354_933_888, rel=0.01)
    label = 'found_fitted-found_x16'
    written = {path.relative_to(out).as_posix() for path in out.rglob('*') if path.is_file()}
    assert written == {
        f'{label}.py',
        f'archs/{label}.json',
        'networks.json',
        'sweep.png',
        'sweep.svg',
    }
    assert count(get_arch(out / f'archs/{label}.json')).flops == network['flops']
    again = run('--from-search', result, '--factor', 16, '--out', out)
    assert (again.returncode, again.stdout) == (2, '')
    assert f'{label}.py exists' in again.stderr
    assert (
        run('--from-search', result, '--factor', 16, '--out', out, '--overwrite').returncode == 0
    )


def test_help_imports_no_torch():
    found = subprocess.run(
        [sys.executable, '-X', 'importtime', str(ROOT / 'tools/scale.py'), '--help'],
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rpartition('|')[2].strip() for line in found.stderr.splitlines()}
    assert 'mmscale.apis.scaling.archs' in imported
    assert not imported & {'torch', 'mmengine', 'mmpretrain', 'matplotlib'}


def test_errors_are_one_line(tmp_path, run, monkeypatch):
    """Mistakes of the command line; those of values are told as the library does."""
    monkeypatch.chdir(tmp_path)
    Path('file').touch()
    for arguments, message in (
        (['RegNetY-400M', '--factor', '2'], 'near names are RegNetY-400MF'),
        (['RegNetY-400MF', '--budget', 'flops=1'], 'strategy=dWr: flops=1 within 0.01 is not'),
        (['RegNetY-400MF', '--budget', 'flops=nan'], 'budget=nan must be a number above 0'),
        (['RegNetY-400MF', '--budget', 'flops=1e9', '--factor', '2'], 'give one of them'),
        (['--fit-latency', '--latency-model', 'file/x.json'], 'file'),
        (['RegNetY-400MF'], 'give --factor, as --factor 4, or --budget'),
        (['--factor', '4'], 'name a network, or --from-search'),
        (
            ['RegNetY-400MF', '--factor', '2', '--most-acts', '5e6'],
            '--most-acts: needs --mode matched',
        ),
        (['RegNetY-400MF', '--budget', 'latency=5'], 'latency needs --latency-model'),
        (
            ['RegNetY-400MF', '--factor', '2', '--latency-model', 'no.json'],
            'no.json is not a file',
        ),
        (['--from-search', 'no.json', '--factor', '4'], 'no.json is not a file'),
        (['--fit-latency', '--factor', '2'], '--factor: --fit-latency makes the runtime model'),
        (['--fit-latency', '--repeats', '0'], '--repeats 0 must be 1 or more'),
        (['RegNetY-400MF', '--factor', '2', '--tolerance', '0.1'], '--tolerance: needs --mode'),
        (['RegNetY-400MF', '--factor', '2', '--dtype', 'float16'], '--dtype: nothing is timed'),
        (['RegNetY-400MF', '--factor', '2', '--device', 'cpu'], '--device: --fit-latency alone'),
    ):
        found = run(*arguments)
        assert (found.returncode, found.stdout) == (2, ''), arguments
        assert message in found.stderr
        assert len(found.stderr.strip().splitlines()) == 1
