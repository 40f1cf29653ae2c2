"""tools/cost.py as a user runs it."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from mmscale.arch import get_arch
from mmscale.cost import count

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(run_tool):
    return partial(run_tool, 'cost.py')


def test_json_of_a_preset(run):
    result = run('ScaleNet-S1', '--json', '--compare')
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    parts = report.pop('parts')
    assert set(parts[0]) == {'name', 'blocks', 'channels', 'size', 'flops', 'params', 'acts'}
    said = report.pop('mmengine')
    assert said['flops'] == report['flops'] + sum(said['reasons'].values())
    assert report == {
        'name': 'scalenet-s1',
        'resolution': 256,
        'flops': 800_296_060,
        'params': 7_432_166,
        'acts': count(get_arch('scalenet-s1')).acts,
        'convention': 'mmscale',
        'shape': [256, 256],
        'shape_source': 'the Arch',
    }
    for key in ('flops', 'params', 'acts'):
        assert sum(part[key] for part in parts) == report[key]
    assert [part['blocks'] for part in parts] == [0, 2, 2, 5, 3, 3, 4, 2, 0]


def test_json_of_a_file_at_another_resolution(tmp_path, run):
    path = tmp_path / 'mine.json'
    get_arch('scalenet-s0-search').save(path)
    report = json.loads(run(path, '--json', '--convention', 'pycls').stdout)
    assert (report['name'], report['convention']) == ('mine', 'pycls')
    assert report['flops'] == 354_943_448
    larger = json.loads(run(path, '--json', '--resolution', 225).stdout)
    assert larger['resolution'] == 225
    assert larger['flops'] > report['flops']
    assert larger['params'] == report['params']


def test_a_rectangle_is_height_and_width(run):
    report = json.loads(run('scalenet-s0', '--json', '--shape', 64, 32).stdout)
    assert report['shape'] == report['resolution'] == [64, 32]
    # Every map has as many elements as in the other orientation, and twice those of a square.
    turned = json.loads(run('scalenet-s0', '--json', '--shape', 32, 64).stdout)
    square = json.loads(run('scalenet-s0', '--json', '--shape', 32, 32).stdout)
    assert turned['flops'] == report['flops']
    assert square['flops'] < report['flops'] < 2 * square['flops']


def test_table(run):
    result = run('scalenet-s5', '--compare')
    assert result.returncode == 0, result.stderr
    for text in ('scalenet-s5 at 533 px', 'stage 7', '10,889,469,914', '20,948,913', 'total'):
        assert text in result.stdout
    assert "MMEngine's FlopAnalyzer reports" in result.stdout
    assert 'say twice as much' in result.stdout


def test_errors_are_one_line(tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    Path('cut.json').write_text('{"schema": 1,', encoding='utf-8')
    for arguments, message in (
        (
            ['resnet-5000'],
            "arch='resnet-5000' is neither a file nor a preset; near names",
        ),
        (['scalenet-s0', '--resolution', '0'], 'resolution=0 must be an integer of 1 or more'),
        (
            ['scalenet-s0', '--resolution', '32', '--shape', '32', '32'],
            'shape=[32, 32] and resolution=32: give one of them',
        ),
        (['scalenet-s0', '--shape', '32', '0'], 'shape[1]=0 must be an integer of 1 or more'),
        (['scalenet-s0', '--scaling-stage', '1'], 'scaling stage 1: scalenet-s0 is no result'),
        (['scalenet-s0', '--batch', '0'], 'batch=0 must be an integer of 1 or more'),
        (['none.py'], 'config=none.py is not a file'),
        (['scalenet-s0', '--cfg-options', 'a=1'], "options=['a=1']: scalenet-s0 is no config"),
        (['cut.json'], 'cut.json: not a JSON file'),
    ):
        result = run(*arguments)
        assert (result.returncode, result.stdout) == (2, '')
        assert message in result.stderr
        assert result.stderr.count('\n') == 1


CONFIG = """
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='SwinTransformer',
        arch=dict(embed_dims=24, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 4]),
        window_size=2,
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=192),
    train_cfg=dict(augments=dict(type='Mixup', alpha=0.8)),
)
"""


def test_config(tmp_path, run):
    path = tmp_path / 'swin.py'
    path.write_text(CONFIG, encoding='utf-8')
    result = run(path, '--json', '--resolution', 64, '--latency', 'cpu', '--batch', 2)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report['name'], report['resolution'], report['uncounted']) == ('swin', 64, [])
    assert 'mmengine' not in report
    for key in ('flops', 'params', 'acts'):
        assert sum(part[key] for part in report['parts']) == report[key]
    assert report['latency']['setting']['batch'] == report['memory']['batch'] == 2
    result = run(path, '--shape', 64, 64, '--latency', 'cpu', '--batch', 2, '--compare')
    printed = ' '.join(result.stdout.split())
    for text in (
        'swin at 64 px, convention mmscale',
        'backbone.stages.3',
        f'{report["flops"]:,}',
        'Activation memory, batch 2:',
        'Latency:',
        "MMEngine's FlopAnalyzer reports",
        'adds layer_norm (+',
        'say twice as much',
    ):
        assert text in printed


def test_bad_options_exit_with_2(run):
    assert run('scalenet-s0', '--convention', 'timm').returncode == 2
    assert run().returncode == 2


def test_help_and_counting_import_neither_torch_nor_mmengine(tmp_path):
    for package in ('torch', 'mmengine'):
        (tmp_path / f'{package}.py').write_text('raise SystemExit(3)', encoding='utf-8')
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    for arguments in (['--help'], ['scalenet-s0', '--json']):
        command = [sys.executable, ROOT / 'tools/cost.py', *arguments]
        subprocess.run(command, env={**os.environ, 'PYTHONPATH': path}, check=True)
