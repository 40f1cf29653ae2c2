"""The names of the front door: there, light, each with an example that runs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from torch import nn

import mmscale
from mmscale.apis.networks import find_network
from mmscale.arch import get_arch

NAMES = {
    'Arch', 'MMScaleError', 'Scaling', 'SearchSpace', 'answer_budgets', 'build',
    'channel_groups', 'export', 'from_timm', 'get_arch', 'get_cost', 'list_archs', 'load_result',
    'prune', 'report', 'run_search', 'scale', 'searcher', 'to_timm',
}  # fmt: skip


def test_every_promised_name_is_there():
    assert set(dir(mmscale)) >= NAMES
    for name in NAMES:
        assert getattr(mmscale, name) is getattr(mmscale.apis, name)
        assert not isinstance(getattr(mmscale, name), type(sys)), f'{name} is a module'
    with pytest.raises(AttributeError):
        _ = mmscale.no_such_name


def test_submodules_that_are_imported_hide_no_name():
    program = (
        'import mmscale, pkgutil, importlib\n'
        'for module in pkgutil.walk_packages(mmscale.__path__, "mmscale."):\n'
        '    if ".mim" not in module.name: importlib.import_module(module.name)\n'
        f'print(sorted(n for n in {sorted(NAMES)} if type(getattr(mmscale, n)) is type(pkgutil)))'
    )
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == '[]', done.stderr


@pytest.mark.parametrize('name', sorted(NAMES - {'MMScaleError'}))
def test_every_name_has_an_example(name):
    """That it runs is for the test of all doctests."""
    assert '>>> ' in getattr(mmscale, name).__doc__


CONFIG = """
model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmscale.ArchNet', arch='scalenet-s1'),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=1000, in_channels=1280))
"""


def test_one_network_by_every_name_has_one_cost(tmp_path):
    arch = get_arch('scalenet-s1')
    arch.save(tmp_path / 'mine.json')
    (tmp_path / 'config.py').write_text(CONFIG)
    named = [
        'ScaleNet-S1', arch, arch.to_json(), tmp_path / 'mine.json', str(tmp_path / 'config.py'),
        Config.fromfile(tmp_path / 'config.py'), find_network('scalenet-s1'),
    ]  # fmt: skip
    costs = {mmscale.get_cost(source).cost for source in named}
    assert len(costs) == 1
    module = mmscale.build(arch)
    assert mmscale.get_cost(module, arch.resolution).cost in costs


def test_networks_of_other_packages():
    pytest.importorskip('timm')
    counted = mmscale.get_cost('timm:resnet18')
    # As timm publishes them: 11.69 M params, 1.82 G multiply-adds.
    assert counted.params == 11_689_512 and round(counted.flops / 1e9, 2) == 1.81
    assert mmscale.get_cost('mmpretrain::resnet/resnet18_8xb32_in1k').cost == counted.cost


def test_a_module_whose_input_nothing_says_is_counted_at_a_size_that_is_said():
    counted = mmscale.get_cost(nn.Conv2d(3, 4, 1))
    assert counted.flops == 12 * 224 * 224
    assert 'Nothing says the size of the images: 224 px are assumed.' in str(counted)
    assert mmscale.get_cost(nn.Conv2d(3, 4, 1), shape=(10, 20)).flops == 12 * 200


def test_a_rectangle_of_an_arch_is_what_its_module_counts():
    arch = get_arch('scalenet-s0')
    wide = mmscale.get_cost(arch, shape=(64, 128))
    module = mmscale.get_cost(mmscale.build(arch), shape=(64, 128))
    assert (wide.shape, wide.cost) == ((64, 128), module.cost)


@pytest.mark.parametrize(
    ('source', 'message'),
    [
        ('scalenet-s9', 'near names are'),
        ('timm:resnet1', 'timm has no such network'),
        ('mmpretrain::no/such', 'mmpretrain::no/such: '),
        ('gone.py', 'gone.py is not a file'),
        (17, '17 is no name, file, Arch, config or module'),
        ({'stages': []}, 'missing key'),
        (Config(dict(lr=1)), 'the config has no model'),
    ],
)
def test_what_is_no_network_is_one_line_of_one_family(source, message):
    with pytest.raises(mmscale.MMScaleError, match=message) as caught:
        mmscale.get_cost(source)
    assert '\n' not in str(caught.value)


def test_results_print_themselves_in_notebooks_too():
    counted = mmscale.get_cost('resnet-18')
    for thing in (counted, counted.cost):
        assert '1,814,073,344' in str(thing) and '1,814,073,344' in thing._repr_html_()


def wrong_calls():
    model, images = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)), torch.zeros(1, 3, 4, 4)
    arch = get_arch('resnet-18')
    return {
        'a mask': (lambda: mmscale.prune(model, [images], {'0': [True] * 4 + [False] * 4}), '0='),
        'a tensor mask': (
            lambda: mmscale.prune(model, [images], {'0': torch.tensor([True, False])}),
            '0=',
        ),
        'half indices': (lambda: mmscale.prune(model, [images], {'0': [1.5]}), r'0=\[1.5\]'),
        'indices twice': (lambda: mmscale.prune(model, [images], {'0': [2, 2]}), 'each once'),
        'no fraction': (lambda: mmscale.prune(model, [images], 'half'), "keep='half'"),
        'images alone': (lambda: mmscale.prune(model, images, 0.5), 'inputs must be a list'),
        'no module': (lambda: mmscale.channel_groups('resnet', [images]), "model='resnet'"),
        'one side': (lambda: mmscale.get_cost(arch, shape=3), 'shape=3'),
        'options of a name': (lambda: mmscale.get_cost('resnet-18', options=['a=1']), 'no config'),
        'a class': (lambda: mmscale.get_cost(nn.Linear), 'is no name'),
        'no rule': (lambda: mmscale.scale(arch, 5, 2), 'strategies=5'),
        'no caps': (lambda: mmscale.scale(arch, 'd', 2, constraints=5), 'constraints=5'),
        'no folder': (lambda: mmscale.export(arch, None), 'out=None'),
        'no weights': (lambda: mmscale.export(arch, 'out'), 'a checkpoint'),
        'a list to export': (lambda: mmscale.export([5], 'out'), 'is no name, file, Arch'),
        'no result': (lambda: mmscale.load_result(5), 'folder=5'),
        'no archive': (lambda: mmscale.answer_budgets(5, 'flops=1M'), 'work_dir=5'),
        'no config': (lambda: mmscale.run_search(None), 'config=None'),
        'no pattern': (lambda: mmscale.list_archs(5), 'pattern=5'),
    }


@pytest.mark.parametrize('kind', wrong_calls())
def test_wrong_arguments_are_one_line_of_one_family(kind):
    call, message = wrong_calls()[kind]
    with pytest.raises(mmscale.MMScaleError, match=message) as caught:
        call()
    assert '\n' not in str(caught.value)


def test_what_scaling_made_is_a_network_to_all():
    (scaled,) = mmscale.scale('RegNetY-400MF', 'dWr', budget=8e8)
    assert abs(scaled.achieved / 8e8 - 1) < 0.01
    assert mmscale.get_cost(scaled, convention='pycls').cost == scaled.cost
    assert sum(p.numel() for p in mmscale.build(scaled).parameters()) == scaled.cost.params
    assert list(mmscale.report(scaled).pictures) == ['arch']


def test_indices_of_any_integers_stay():
    model, images = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)), torch.zeros(1, 3, 4, 4)
    kept = model[0].weight[[1, 6]]
    for indices in ([6, 1], np.array([1, 6]), torch.tensor([1, 6])):
        small, _ = mmscale.prune(model, [images], {'0': indices})
        assert torch.equal(small[0].weight, kept)


def test_the_backbone_of_a_config_is_a_backbone():
    config = Path(mmscale.__file__).parent / '.mim/configs/scalenet/digits-s0.py'
    maps = mmscale.build(config, features_only=True, out_indices=0)(torch.zeros(2, 1, 24, 24))
    assert len(maps) == 1 and len(maps[0]) == 2


def test_a_notebook_shows_what_is_printed():
    arch = get_arch('resnet-18')
    groups = mmscale.channel_groups(nn.Conv2d(3, 8, 1), [torch.zeros(1, 3, 4, 4)])
    for thing in (arch, groups):
        assert str(thing).splitlines()[0] in thing._repr_html_()
    assert 'px, ' in repr(mmscale.scale(arch, 'w', 2)) and 'Block(' not in repr(
        mmscale.scale(arch, 'w', 2)
    )
