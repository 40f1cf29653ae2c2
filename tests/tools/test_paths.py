"""Paths with spaces, quotes, brackets and letters of other scripts: tools read and write there.

tools/train.py, search.py and slurm_train.sh have such paths in tests/chaos, convert.py in none.
"""

import runpy
import sys
from pathlib import Path

import pytest
import torch

from mmscale.apis.networks import build_module
from mmscale.arch import get_arch
from mmscale.launch.command_line import read_config
from mmscale.models import ArchNet

TOOLS = Path(__file__).resolve().parents[2] / 'tools'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    folder = tmp_path / 'größe [1], 网络 (o\'neil\'s "b") %s {x}'
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    get_arch('scalenet-s0').save(folder / "ä o'b.json")
    return folder


@pytest.fixture
def call(monkeypatch, capsys):
    def run(name, *arguments):
        monkeypatch.setattr(sys, 'argv', [name, *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(str(TOOLS / name), run_name='__main__')
        except SystemExit as error:
            code = error.code or 0
        output = capsys.readouterr()
        assert code == 0, output.err
        return output.out

    return run


PRUNED = """
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


def test_archs_and_checkpoints(call, folder):
    arch = folder / "ä o'b.json"
    assert '"flops"' in call('cost.py', arch, '--json')
    call('scale.py', arch, '--strategy', 'dWr', '--factor', '2', '--out', folder / 'scaled ü')
    assert list((folder / 'scaled ü').rglob('*.json'))
    call('report.py', arch, '--out', folder / 'report ü')
    assert list((folder / 'report ü').glob('*.png'))
    net = ArchNet(get_arch('resnet-18'))
    torch.save({'state_dict': net.state_dict()}, folder / 'net ü.pth')
    call(
        'export.py', 'resnet-18', '--checkpoint', folder / 'net ü.pth', '--out', folder / 'out ü',
        '--formats', 'mmpretrain',
    )  # fmt: skip
    (scaled,) = (folder / 'scaled ü').glob('*.py')
    for config in (folder / 'out ü' / 'mmpretrain_config.py', scaled):
        arch = read_config(config).model.backbone.arch
        assert Path(arch).is_file() and Path(arch).is_relative_to(config.parent)


def test_configs(call, folder):
    config = folder / 'prune größe.py'
    config.write_text(PRUNED)
    settings = runpy.run_path(str(config))
    model = build_module(settings['model'])
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, folder / 'iter 9.pth')
    call('prune.py', config, folder / 'iter 9.pth', '--out', folder / 'pruned ü')
    (folder / 'pruned ü').rename(folder / "o'neil")
    retrain = read_config(folder / "o'neil" / 'retrain.py')
    for path in (retrain.model.backbone.arch, retrain.load_from):
        assert Path(path).is_file() and Path(path).parent == folder / "o'neil"

    arch = get_arch(TOOLS.parent / 'configs/scalenet/archs/digits-s0.json')
    arch.save(folder / 'digits ä.json')
    test = folder / 'test größe.py'
    test.write_text(
        f'_base_ = {str(TOOLS.parent / "configs/scalenet/arch-net_digits.py")!r}\n'
        f'model = dict(backbone=dict(arch={str(folder / "digits ä.json")!r}))\n'
        f'dataset = dict(num_images=20, data_root={str(folder / "data ä")!r})\n'
        'test_dataloader = dict(dataset=dataset)\n'
    )
    net = build_module(read_config(test).model)
    torch.save({'state_dict': net.state_dict()}, folder / 'net ä.pth')
    call('test.py', test, folder / 'net ä.pth', '--work-dir', folder / 'work ä')
    assert list((folder / 'work ä').rglob('*.json'))
