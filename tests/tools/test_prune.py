"""tools/prune.py as a user runs it."""

import json
import re
from functools import partial

import pytest
import torch

from mmscale.apis.networks import build_module

CONFIG = """
default_scope = 'mmpretrain'
model = dict(
    type='mmscale.DMSModel',
    target=0.5,
    input_shape=(3, 32, 32),
    model=dict(
        type='ImageClassifier',
        backbone=dict(type='mmscale.ArchNet', arch='ResNet-18'),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=4, in_channels=512),
    ),
)
"""


@pytest.fixture
def run(run_tool):
    return partial(run_tool, 'prune.py')


@pytest.fixture
def search(tmp_path):
    """Config and checkpoint of a search that halves one width."""
    config = tmp_path / 'search.py'
    config.write_text(CONFIG)
    settings = {}
    exec(CONFIG, settings)
    model = build_module(settings['model'])
    gate = model.gates['backbone/stages/1/0/spatial']
    gate.pruning_ratio.data.fill_(0.5)
    checkpoint = tmp_path / 'iter_9.pth'
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, checkpoint)
    return config, checkpoint, tmp_path / 'pruned'


def test_table(search, run):
    config, checkpoint, out = search
    found = run(config, checkpoint, '--out', out)
    assert found.returncode == 0, found.stderr
    assert 'backbone.stages.1.0.spatial: 64 of 128' in found.stdout
    assert 'head.in_channels: 512' in found.stdout
    assert f'tools/train.py {out}/retrain.py' in found.stdout
    assert sorted(path.name for path in out.iterdir()) == [
        'arch.json',
        'retrain.py',
        'weights.pth',
    ]
    assert json.loads((out / 'arch.json').read_text())['stages'][1][0]['hidden_channels'] == 64
    assert re.search(r'budget: flops [0-9.e+,]+, the network has \+9[0-9]\.[0-9]+%', found.stdout)
    assert 'The search has not ended' in found.stdout
    again = run(config, checkpoint, '--out', out)
    assert again.returncode == 2
    assert again.stderr.startswith(f'error: {out}/arch.json exists: name another folder, or give')
    (out / 'pruned.json').write_text('{}')
    again = run(config, checkpoint, '--out', out, '--overwrite', '--json')
    assert again.returncode == 0, again.stderr
    report = json.loads(again.stdout)
    assert not (out / 'pruned.json').exists()
    assert report['budget']['value'] == report['after']['flops']
    assert not report['budget']['ended']


def test_out_is_a_file(search, run):
    config, checkpoint, _ = search
    found = run(config, checkpoint, '--out', checkpoint)
    assert found.returncode == 2
    assert found.stderr == f'error: out={checkpoint} is a file, not a folder\n'


def test_damaged_checkpoint(search, run):
    config, checkpoint, out = search
    checkpoint.write_bytes(b'no checkpoint')
    found = run(config, checkpoint, '--out', out)
    assert found.returncode == 2
    assert found.stderr.startswith(f'error: {checkpoint} is not a checkpoint')
    assert found.stderr.count('\n') == 1


def test_dry_says_what_can_go_and_writes_nothing(search, run, tmp_path):
    config, checkpoint, _ = search
    report = json.loads(run(config, '--dry', '--json').stdout)
    assert report['shape'] == [3, 32, 32]
    widths = {group['name']: group for group in report['widths']}
    assert widths['backbone.stages.1.0.spatial']['size'] == 128
    assert report['elements'] == sum(group['size'] for group in report['widths'])
    plain = tmp_path / 'plain.py'
    # The model of any config, without a search around it.
    settings = {}
    exec(CONFIG, settings)
    plain.write_text(f"default_scope = 'mmpretrain'\nmodel = {settings['model']['model']!r}\n")
    found = run(plain, '--dry')
    assert found.returncode == 0, found.stderr
    assert f'{len(widths)} widths with {report["elements"]:,} elements' in found.stdout
    assert {path.name for path in tmp_path.iterdir()} == {'search.py', 'plain.py', 'iter_9.pth'}
    for words in ([config, checkpoint, '--dry'], [config], [config, checkpoint]):
        assert run(*words).returncode == 2
