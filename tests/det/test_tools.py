"""Our detection configs in mmdet's own training tool and in ours, on a handful of images."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import mmdet
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader

from mmscale.models import ArchNet

ROOT = Path(__file__).resolve().parents[2]
STOCK = Path(mmdet.__file__).parent / '.mim' / 'tools' / 'train.py'
SCALING = dict(width=0.25, depth=0.5)

CHILD = """
_base_ = {base!r}

metainfo = dict(classes=('blue', 'green'))
data = dict(
    data_root={data!r}, ann_file='annotations.json', data_prefix=dict(img=''), metainfo=metainfo
)
loader = dict(num_workers=0, persistent_workers=False, dataset=data)
train_dataloader = dict(**loader)
val_dataloader = dict(**loader)
val_evaluator = dict(ann_file={data!r} + '/annotations.json')
model = dict(
    backbone=dict(
        scaling={scaling!r},
        frozen_stages=1,
        init_cfg=dict(type='Pretrained', checkpoint={weights!r}, prefix={prefix!r}),
    ),
    bbox_head=dict(num_classes=2, stacked_convs=1),
    # What has hardly learned is hardly sure of anything.
    test_cfg=dict(score_thr=0.0),
)
train_cfg = dict(max_epochs=1)
randomness = dict(seed=0)
"""


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """Checkpoint of a classifier around the small network."""
    torch.manual_seed(0)
    net = ArchNet('scalenet-s0', SCALING)
    path = tmp_path_factory.mktemp('weights') / 'classifier.pth'
    state = {f'backbone.{key}': tensor for key, tensor in net.state_dict().items()}
    torch.save({'state_dict': {**state, 'head.fc.weight': torch.zeros(10, 1280)}}, path)
    return path


def write_config(path, coco, weights, prefix='backbone.'):
    base = str(ROOT / 'configs/det/retinanet_scalenet-s0_fpn_1x_coco.py')
    values = dict(base=base, data=str(coco), scaling=SCALING, weights=str(weights), prefix=prefix)
    path.write_text(CHILD.format(**values))
    config = Config.fromfile(path)
    # The images are small already.
    for loader in (config.train_dataloader, config.val_dataloader):
        for transform in loader.dataset.pipeline:
            if transform.type == 'Resize':
                transform.scale = (64, 64)
    config.test_dataloader = config.val_dataloader
    config.test_evaluator = config.val_evaluator
    config.dump(path)
    return path


def ours(monkeypatch, *arguments):
    # The tool sets it; here it has to be gone afterwards.
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    monkeypatch.setattr(sys, 'argv', ['train.py', *map(str, arguments)])
    runpy.run_path(str(ROOT / 'tools/train.py'), run_name='__main__')


@pytest.mark.slow
def test_stock_mmdet_tool_and_ours_train_the_same_detector(tmp_path, coco, weights, monkeypatch):
    config = write_config(tmp_path / 'detector.py', coco, weights)
    command = [sys.executable, STOCK, config, '--work-dir', tmp_path / 'stock']
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, check=False, cwd=tmp_path,
        env=dict(os.environ),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'coco/bbox_mAP:' in done.stdout + done.stderr
    ours(monkeypatch, config, '--work-dir', tmp_path / 'ours')
    stock, own = (
        CheckpointLoader.load_checkpoint(str(tmp_path / name / 'epoch_1.pth'))['state_dict']
        for name in ('stock', 'ours')
    )
    assert stock.keys() == own.keys()
    assert all(torch.equal(stock[key], own[key]) for key in stock)
    # What is frozen has the classifier's weights still, and the rest has learned.
    given = torch.load(weights, weights_only=True)['state_dict']
    changed = {key for key in given.keys() & own.keys() if not torch.equal(given[key], own[key])}
    frozen = {key for key in given if key.startswith(('backbone.stem.', 'backbone.stages.0.'))}
    assert frozen and not changed & frozen
    assert 'backbone.stages.1.0.expand.conv.weight' in changed
    # A quarter of the 40 channels at stride 8.
    assert own['backbone.neck.lateral_convs.0.conv.weight'].shape[:2] == (256, 10)


@pytest.mark.parametrize('prefix', ['bakbone.', 'head.'])
def test_a_wrong_prefix_is_one_line_before_any_work(
    prefix, tmp_path, coco, weights, monkeypatch, capsys
):
    config = write_config(tmp_path / 'detector.py', coco, weights, prefix)
    with pytest.raises(SystemExit, match='2'):
        ours(monkeypatch, config, '--work-dir', tmp_path / 'work')
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f'error: init_cfg: with prefix={prefix!r} no key of')
    assert f'first would be {prefix}stem.conv.weight' in line
    assert line.endswith('the keys there begin with backbone., head.')
    assert not list((tmp_path / 'work').glob('*.pth'))


def test_a_checkpoint_of_another_network_is_refused(tmp_path, coco, weights, monkeypatch, capsys):
    config = write_config(tmp_path / 'detector.py', coco, weights)
    state = torch.load(weights, weights_only=True)['state_dict']
    other = {key.replace('backbone.', 'trunk.'): tensor for key, tensor in state.items()}
    torch.save({'state_dict': other}, tmp_path / 'other.pth')
    with pytest.raises(SystemExit, match='2'):
        options = ['--cfg-options', f'load_from={tmp_path / "other.pth"}']
        ours(monkeypatch, config, '--work-dir', tmp_path / 'work', *options)
    line = capsys.readouterr().err.splitlines()[-1]
    assert 'does not fit the model' in line and 'missing: backbone.stem.conv.weight' in line
