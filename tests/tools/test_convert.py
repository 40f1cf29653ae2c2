"""tools/convert.py as a user runs it, most mistakes in this process: torch is slow to load."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmscale.apis.networks import build_module, build_network
from mmscale.arch import Arch
from mmscale.errors import UsageError
from mmscale.models.converters import matching_arch

ROOT = Path(__file__).parents[2]


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, str(ROOT / 'tools/convert.py'), *map(str, arguments)],
        env={**os.environ, 'PYTHONPATH': str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def convert(monkeypatch):
    """A function that runs the tool in this process."""
    main = runpy.run_path(str(ROOT / 'tools/convert.py'))['main']
    # As run_tool does for a tool's own process.
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')

    def call(*arguments):
        monkeypatch.setattr(sys, 'argv', ['convert.py', *map(str, arguments)])
        main()

    return call


@pytest.fixture(scope='module')
def backbone():
    return build_module(dict(type='ResNet', depth=18))


@pytest.fixture
def checkpoint(backbone, tmp_path):
    """A checkpoint as MMEngine writes them, of mmpretrain's ResNet-18 with ten classes."""
    weights = {f'backbone.{key}': value for key, value in backbone.state_dict().items()}
    weights |= {'head.fc.weight': torch.randn(10, 512), 'head.fc.bias': torch.randn(10)}
    path = tmp_path / 'theirs.pth'
    torch.save({'meta': {'epoch': 3}, 'state_dict': weights, 'optimizer': {}}, path)
    return path


def test_what_is_written_loads_into_classifier_and_backbone(
    backbone, checkpoint, tmp_path, run_tool
):
    out = tmp_path / 'ours.pth'
    words = ('resnet18_8xb16_cifar10', '--source', 'mmpretrain', '--out', out)
    result = run_tool('convert.py', checkpoint, *words)
    assert result.returncode == 0, result.stderr
    assert 'with classifier' in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        'ours.json',
        'ours.pth',
        'theirs.pth',
    ]
    arch = Arch.from_json(tmp_path / 'ours.json')
    assert arch.head.num_classes == 10
    build_network(arch).load_state_dict(torch.load(out, weights_only=True)['state_dict'])
    init_cfg = dict(type='Pretrained', checkpoint=str(out), prefix='backbone.')
    config = dict(type='mmscale.ArchNet', arch=str(tmp_path / 'ours.json'), init_cfg=init_cfg)
    network = build_module(config)
    network.init_weights()
    for ours, theirs in (
        (network.stem.conv, backbone.conv1),
        (network.stages[3][1].project.conv, backbone.layer4[1].conv2),
    ):
        assert torch.equal(ours.weight, theirs.weight)


def test_help_does_not_import_torch(tmp_path):
    for package in ('torch', 'mmengine'):
        (tmp_path / f'{package}.py').write_text('raise SystemExit(3)', encoding='utf-8')
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    assert run('--help', PYTHONPATH=path).returncode == 0
    # Neither do mistakes that can be told without it.
    result = run('no.pth', 'b0', '--source', 'timm', '--out', 'a.pth', PYTHONPATH=path)
    assert result.returncode == 2
    assert result.stderr == 'error: checkpoint=no.pth is not a file\n'


@pytest.mark.parametrize(
    ('name', 'out', 'message'),
    [
        ('resnet17', 'ours.pth', "name='resnet17': no Arch matches .* near names are .*resnet18"),
        ('resnet34', 'ours.pth', 'do not fit the Arch: .* missing: backbone.layer1.2.conv1'),
        ('no.json', 'ours.pth', 'No such file'),
        ('resnet18', 'ours.bin', 'the name must end in .pth'),
        ('resnet18', 'none/ours.pth', 'none is not a folder'),
        ('resnet18', 'theirs.pth', 'is the checkpoint itself'),
    ],
)
def test_mistakes(name, out, message, convert, checkpoint, tmp_path):
    with pytest.raises(UsageError, match=message):
        convert(checkpoint, name, '--source', 'mmpretrain', '--out', tmp_path / out)
    assert [path.name for path in tmp_path.iterdir()] == ['theirs.pth']


def test_what_cannot_be_written_is_told_in_a_line(convert, checkpoint, tmp_path):
    (tmp_path / '.ours.pth.partial').mkdir()
    with pytest.raises(UsageError, match=r'--out .*ours.pth: .+') as caught:
        convert(checkpoint, 'resnet18', '--source', 'mmpretrain', '--out', tmp_path / 'ours.pth')
    assert '\n' not in str(caught.value)


class _Code:
    def __reduce__(self):
        return os.system, ('touch ran',)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (_Code(), 'is not a checkpoint of tensors and plain values'),
        ({'state_dict': {}}, 'holds no weights'),
        ([torch.ones(1)], 'it holds a list'),
        ({'epoch': 3}, "'epoch' is a int, not weights"),
        ({'state_dict': {3: torch.ones(1)}}, '3 is a Tensor, not weights'),
    ],
)
def test_files_that_hold_no_weights(content, message, convert, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(content, 'theirs.pth')
    with pytest.raises(UsageError, match=message):
        convert('theirs.pth', 'resnet18', '--source', 'timm', '--out', 'ours.pth')
    assert [path.name for path in tmp_path.iterdir()] == ['theirs.pth']


def test_safetensors_and_an_arch_file(backbone, convert, tmp_path):
    """timm's published format, and an Arch that is no preset's."""
    safetensors = pytest.importorskip('safetensors.torch')
    theirs, arch = tmp_path / 'model.safetensors', tmp_path / 'mine.json'
    # Names of timm's ResNet are those of mmpretrain's backbone.
    safetensors.save_file(backbone.state_dict(), theirs)
    matching_arch('resnet18', 'timm').save(arch)
    convert(theirs, arch, '--source', 'timm', '--out', tmp_path / 'ours.pth')
    weights = torch.load(tmp_path / 'ours.pth', weights_only=True)['state_dict']
    assert torch.equal(weights['backbone.stem.conv.weight'], backbone.conv1.weight)
    assert (tmp_path / 'ours.json').read_text() == arch.read_text()
    theirs.write_bytes(b'damaged')
    with pytest.raises(UsageError, match=r'is not a checkpoint .*safetensors'):
        convert(theirs, arch, '--source', 'timm', '--out', tmp_path / 'ours.pth')


def test_there_and_back(convert, checkpoint, tmp_path, capsys):
    ours, back = tmp_path / 'ours.pth', tmp_path / 'back.safetensors'
    convert(checkpoint, 'resnet18', '--source', 'mmpretrain', '--out', ours)
    convert(ours, tmp_path / 'ours.json', '--to', 'mmpretrain', '--out', back)
    assert 'back.safetensors: 122 tensors with the names of mmpretrain' in capsys.readouterr().out
    from safetensors.torch import load_file

    found, expected = load_file(back), torch.load(checkpoint, weights_only=True)['state_dict']
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert not back.with_suffix('.json').exists()
    with pytest.raises(UsageError, match='missing'):
        convert(checkpoint, 'resnet18', '--to', 'timm', '--out', tmp_path / 'no.pth')
    with pytest.raises(UsageError, match='near names are ResNet'):
        convert(ours, 'resnet19', '--to', 'timm', '--out', tmp_path / 'no.pth')
