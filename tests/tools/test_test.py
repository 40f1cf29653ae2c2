"""tools/test.py: what mmpretrain's has, tried on a small network and a handful of images."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from mmengine.fileio import load
from mmpretrain.registry import DATASETS

from mmscale.apis.networks import build_module
from mmscale.launch.command_line import read_config

ROOT = Path(__file__).resolve().parents[2]
CONFIG = f"""
_base_ = {str(ROOT / 'configs/scalenet/digits-s0.py')!r}
test_dataloader = dict(batch_size=4, dataset=dict(num_images=8))
# MMEngine's runners of one process must have different names.
experiment_name = {{name!r}}
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    monkeypatch.setenv('LOCAL_RANK', '0')
    path = tmp_path / 'config.py'
    path.write_text(CONFIG.format(name=tmp_path.name))
    return path


@pytest.fixture
def checkpoint(config, randomise):
    torch.manual_seed(0)
    model = randomise(build_module(read_config(config).model), weights=True).eval()
    with torch.no_grad():
        # So that scores differ from image to image, and none is 0 or 1.
        logits = model.head.fc(model.extract_feat(torch.randn(8, 1, 24, 24))[-1])
        model.head.fc.weight /= logits.std()
    path = config.with_name('net.pth')
    torch.save({'state_dict': model.state_dict()}, path)
    return path


@pytest.fixture
def test_tool(config, checkpoint, monkeypatch, capsys):
    """Runs tools/test.py in this process; returns its exit code and the last line of stderr."""

    def run(*words):
        # Another runner needs another name.
        run.count += 1
        name = f'experiment_name={config.parent.name}_{run.count}'
        given = ['test.py', config, checkpoint, *words, '--cfg-options', name]
        monkeypatch.setattr(sys, 'argv', [*map(str, given)])
        code = 0
        try:
            runpy.run_path(str(ROOT / 'tools/test.py'), run_name='__main__')
        except SystemExit as error:
            code = error.code
        return code, (capsys.readouterr().err.splitlines() or [''])[-1]

    run.count = 0
    return run


def test_predictions_go_to_no_file_of_another_name(test_tool, tmp_path):
    (tmp_path / 'mine').write_text('precious')
    (tmp_path / 'a.pkl').symlink_to('mine')
    code, error = test_tool('--out', 'a.pkl')
    assert code == 2 and 'a.pkl is a symbolic link to mine' in error
    assert (tmp_path / 'mine').read_text() == 'precious'


def test_predictions_of_mirror_images_are_averaged(config, checkpoint, test_tool):
    assert test_tool('--out', 'plain.pkl') == (0, '')
    assert test_tool('--tta', '--out', 'augmented.pkl', '--no-pin-memory') == (0, '')
    plain, augmented = (
        torch.stack([prediction['pred_score'] for prediction in load(name)])
        for name in ('plain.pkl', 'augmented.pkl')
    )
    settings = read_config(config)
    settings.test_dataloader.dataset.pipeline[0].resolution = 24
    dataset = DATASETS.build(settings.test_dataloader.dataset)
    model = build_module(settings.model)
    model.load_state_dict(torch.load(checkpoint, weights_only=True)['state_dict'])
    model.eval()
    images = torch.stack([dataset[i]['inputs'] for i in range(len(dataset))])
    with torch.no_grad():
        scores, mirrored = (
            model.head(model.extract_feat((each - 52.7) / 53.6)).softmax(-1)
            for each in (images, images.flip(-1))
        )
    assert torch.allclose(plain, scores, atol=1e-5)
    assert torch.allclose(augmented, (scores + mirrored) / 2, atol=1e-5)
    assert not torch.allclose(plain, augmented, atol=1e-3)


def test_images_of_datasets_in_datasets_are_mirrored_too(config, test_tool):
    nested = """
part = _base_.test_dataloader.dataset
part.num_images = 8
parts = [part, dict(type='RepeatDataset', dataset=part, times=1)]
test_dataloader = dict(dataset=dict(_delete_=True, type='ConcatDataset', datasets=parts))
"""
    assert test_tool('--tta', '--out', 'one.pkl') == (0, '')
    config.write_text(config.read_text() + nested)
    assert test_tool('--tta', '--out', 'both.pkl') == (0, '')
    one, both = ([one['pred_score'] for one in load(name)] for name in ('one.pkl', 'both.pkl'))
    assert torch.allclose(torch.stack(one + one), torch.stack(both), atol=1e-6)


def test_metrics_and_pictures(test_tool):
    words = ['--out', 'new/metrics.json', '--out-item', 'metrics', '--show-dir', 'shown']
    assert test_tool(*words, '--interval', '3', '--amp') == (0, '')
    accuracy = json.loads(Path('new/metrics.json').read_text())['accuracy/top1']
    assert accuracy in [100 * right / 8 for right in range(9)]
    assert sorted(path.name for path in Path('shown').iterdir()) == [
        '0_0.png',
        '3_0.png',
        '6_0.png',
    ]


def test_bad_options_are_one_line(test_tool):
    for words, message in (
        (['--out-item', 'pred'], '--out-item needs --out'),
        (['--out', 'a.json'], '--out a.json: must end with .pkl'),
        (['--out', 'a.txt', '--out-item', 'metrics'], 'must end with .json'),
        (['--interval', '0'], '--interval 0: must be at least 1'),
        (['--tta', '--show-dir', 'shown'], '--show-dir cannot draw'),
    ):
        code, error = test_tool(*words)
        assert code == 2 and message in error


def test_what_a_config_must_have(config, test_tool):
    config.write_text(config.read_text() + "default_scope = 'mmseg'\n")
    code, error = test_tool('--tta')
    assert code == 2 and 'default_scope=mmseg must be mmpretrain or mmdet' in error
    # As it would be where every transform was in a wrapper.
    text = config.read_text().replace("'mmseg'", "'mmpretrain'")
    config.write_text(text + "test_dataloader['dataset']['pipeline'] = None\n")
    code, error = test_tool('--tta')
    assert code == 2 and '--tta: test_dataloader.dataset has no pipeline' in error
    config.write_text(config.read_text() + 'test_cfg = None\n')
    code, error = test_tool()
    assert code == 2 and error.endswith('config.py has no test_cfg')
