"""tools/export.py as a user runs it, and what it writes under tools/test.py."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

from mmscale.apis.exports.configs import DETECTORS
from mmscale.apis.exports.export import FORMATS
from mmscale.apis.networks import build_network
from mmscale.arch import Arch
from mmscale.errors import UsageError

ROOT = Path(__file__).parents[2]
ARCH = ROOT / 'configs/scalenet/archs/digits-s0.json'


@pytest.fixture
def run(monkeypatch, capfd):
    """A function that runs the tool in this process, as torch is slow to load; its output."""
    main = runpy.run_path(str(ROOT / 'tools/export.py'))['main']

    def call(*arguments):
        monkeypatch.setattr(sys, 'argv', ['export.py', *map(str, arguments)])
        main()
        return capfd.readouterr().out

    return call


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / 'iter_600.pth'
    torch.save(dict(state_dict=build_network(Arch.from_json(ARCH)).state_dict(), meta={}), path)
    return path


@pytest.mark.slow
def test_the_exported_config_is_tested(run, run_tool, checkpoint, tmp_path):
    out = tmp_path / 'exported'
    config = ROOT / 'configs/scalenet/arch-net_digits.py'
    settings = ('--checkpoint', checkpoint, '--config', config, '--formats', 'mmpretrain')
    report = json.loads(run(ARCH, '--out', out, *settings, '--json'))
    assert sorted(report['files']) == ['arch.json', 'mmpretrain_config.py', 'weights.pth']
    data = [f'test_dataloader.dataset.{one}' for one in ('num_images=40', f'data_root={tmp_path}')]
    files = (out / 'mmpretrain_config.py', out / 'weights.pth')
    words = (*files, '--work-dir', tmp_path / 'work', '--cfg-options', *data)
    tested = run_tool('test.py', *words)
    assert tested.returncode == 0, tested.stderr
    (metrics,) = (tmp_path / 'work').glob('*/*.json')
    assert 0 <= json.loads(metrics.read_text())['accuracy/top1'] <= 100


def test_what_is_printed(run, checkpoint, tmp_path):
    out = run(ARCH, '--checkpoint', checkpoint, '--out', tmp_path / 'out', '--formats', 'mmdet')
    wrote = f'Wrote {tmp_path}/out: arch.json, weights.pth, mmdet_config.py, model_card.md'
    assert out.splitlines() == [wrote]
    # The Arch's file remembers how images were normalised.
    text = (tmp_path / 'out' / 'mmdet_config.py').read_text(encoding='utf-8')
    assert re.search(r'mean=\[\s*52\.7,?\s*\]', text)


def test_a_network_is_exported_before_it_is_trained(run, tmp_path):
    out = run(ARCH, '--random-weights', '--out', tmp_path / 'out', '--formats', 'mmpretrain')
    assert out.startswith('The weights are random')
    with pytest.raises(UsageError, match=r'random_weights \(--random-weights\)'):
        run(ARCH, '--out', tmp_path / 'other')


def test_a_mistake_is_one_line(run, checkpoint, tmp_path):
    with pytest.raises(UsageError, match=r'does not fit the network: .*expected') as error:
        run('ResNet-18', '--checkpoint', checkpoint, '--out', tmp_path / 'out')
    assert str(error.value).startswith(str(checkpoint)) and '\n' not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['iter_600.pth']


def test_help_lists_the_detectors_and_formats(run, capfd):
    with pytest.raises(SystemExit):
        run('--help')
    text = capfd.readouterr().out
    for name in (*DETECTORS, *FORMATS):
        assert name in text
