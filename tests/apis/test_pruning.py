"""apis.prune: by a fraction, by groups, and the outcome of a search."""

import copy
import json
import shutil

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from mmscale.apis.networks import build_module
from mmscale.apis.pruned_files import export_search
from mmscale.apis.pruning import channel_groups, prune
from mmscale.arch import Arch
from mmscale.arch.origin import read_origin
from mmscale.cost import count, count_module
from mmscale.models import ArchNet, SuperNet

IMAGE = [torch.zeros(1, 3, 32, 32)]
RESNET = dict(
    type='mmpretrain.ImageClassifier',
    backbone=dict(type='mmpretrain.ResNet', depth=18, base_channels=8, stem_channels=8),
    neck=dict(type='mmpretrain.GlobalAveragePooling'),
    head=dict(type='mmpretrain.LinearClsHead', num_classes=4, in_channels=64),
)
ARCH_NET = RESNET | dict(
    backbone=dict(type='mmscale.ArchNet', arch='MobileNetV2'),
    head=dict(type='mmpretrain.LinearClsHead', num_classes=4, in_channels=1280),
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MODELS.build(copy.deepcopy(RESNET)).eval()


def test_a_fraction_of_every_width(model):
    before = copy.deepcopy(model.state_dict())
    small, cost = prune(model, IMAGE, 0.5)
    assert cost.cost == count_module(small, inputs=IMAGE, memory=False).cost
    assert small(*IMAGE).shape == (1, 4)
    assert small.backbone.layer1[0].conv1.weight.shape[:2] == (4, 4)
    assert len(small.state_dict()) == len(before)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    whole, full = prune(model, IMAGE, 1.0)
    assert full.params > 3.5 * cost.params
    with torch.no_grad():
        assert torch.equal(whole(*IMAGE), model(*IMAGE))


def test_per_group_the_largest_weights_stay(model):
    name = 'backbone.layer1.0.conv1'
    weight = model.get_submodule(name).weight
    with torch.no_grad():
        weight[[2, 5, 6]] *= 10
    small, _ = prune(model, IMAGE, {name: 3 / 8, 'backbone.layer2.1.conv1': [1]})
    assert torch.equal(small.get_submodule(name).weight, weight[[2, 5, 6]])
    assert small.backbone.layer2[1].conv2.in_channels == 1
    blocks, _ = prune(model, IMAGE, {'backbone.layer1': [1]})
    assert not list(blocks.backbone.layer1[0].parameters())


@pytest.mark.parametrize(
    ('keep', 'message'),
    [
        (0, '=0.0 must be a number above 0 and up to 1'),
        (1.5, '=1.5 must be a number above 0'),
        ({'backbone.conv2': 0.5}, 'there is no group backbone.conv2'),
        ({'backbone.conv1': True}, '=True must be a number above 0'),
        ({'backbone.conv1': [8]}, r'has elements 0..7, not \[8\]'),
    ],
)
def test_bad_keep(model, keep, message):
    with pytest.raises(ValueError, match=message):
        prune(model, IMAGE, keep)


def test_super_net_gives_an_arch_net():
    space = dict(
        stem=dict(channels=4),
        stages=[dict(channels=6, stride=2, expand=2, depths=[1, 2], kernels=[3, 5])],
        head=dict(channels=8),
        num_classes=3,
        scaling_stages=[dict(depth=[1], width=[1], resolution=[16])],
    )
    net = SuperNet(space)
    small, cost = prune(net, [torch.zeros(1, 3, 16, 16)], 0.5)
    assert isinstance(small, ArchNet)
    assert not isinstance(small, SuperNet)
    assert isinstance(net, SuperNet)
    assert cost.params < count(net.arch).params


@pytest.fixture
def make_search(tmp_path):
    """A function that gives a search's config and what its checkpoint would hold."""

    def make(model):
        search = dict(type='mmscale.DMSModel', model=model, target=0.5, input_shape=(3, 32, 32))
        config = Config(dict(model=search, default_scope='mmpretrain'))
        torch.manual_seed(0)
        built = build_module(copy.deepcopy(search))
        for number, gate in enumerate(built.gates.values()):
            gate.importance.copy_(torch.rand(gate.n))
            gate.pruning_ratio.data.fill_(0.1 + 0.6 * (number % 2))
        for module in built.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.uniform_(0.5, 1.5)
                module.bias.data.normal_(0, 0.3)
        return config, built.eval(), tmp_path / 'out'

    return make


def test_search_of_an_arch_net(make_search):
    config, search, out = make_search(ARCH_NET)
    report = export_search(config, search.state_dict(), out).to_json()
    assert sorted(path.name for path in out.iterdir()) == ['arch.json', 'weights.pth']
    arch = Arch.from_json(out / 'arch.json')
    assert report['widths'] == {'head.in_channels': arch.feature_channels}
    model = copy.deepcopy(ARCH_NET)
    model['backbone']['arch'] = str(out / 'arch.json')
    model['head']['in_channels'] = arch.feature_channels
    small = MODELS.build(model).eval()
    small.load_state_dict(torch.load(out / 'weights.pth', weights_only=True)['state_dict'])
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(small(x), search(x), rtol=1e-4, atol=1e-6)
    found = count_module(small, inputs=IMAGE, memory=False)
    assert report['after'] == {k: getattr(found, k) for k in ('flops', 'params', 'acts')}
    assert report['after']['flops'] == search.current_cost().flops < report['before']['flops']
    assert len(arch.blocks) < 17
    kept = sum(kept < size for kept, size in report['kept'].values())
    assert kept > 10


def test_search_of_any_other_model(make_search):
    config, search, out = make_search(RESNET)
    report = export_search(config, search.state_dict(), out).to_json()
    assert sorted(path.name for path in out.iterdir()) == ['pruned.json', 'weights.pth']
    wrapper = dict(type='mmscale.PrunedModel', model=RESNET, pruned=str(out / 'pruned.json'))
    small = MODELS.build(wrapper).eval()
    small.load_state_dict(torch.load(out / 'weights.pth', weights_only=True)['state_dict'])
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(small(x), search(x), rtol=1e-4, atol=1e-6)
    assert report['after']['params'] == sum(p.numel() for p in small.parameters())
    described = json.loads((out / 'pruned.json').read_text())
    groups = channel_groups(search.model, IMAGE)
    assert described['keep'].keys() == groups.by_name.keys()


HOOKS = [dict(type='mmscale.StrictLoadHook'), dict(type='mmscale.DMSHook', interval=2)]


def config_file(path, **settings):
    Config(settings).dump(path)
    return Config.fromfile(path)


# What is found is an Arch that is scaled already, and its weights are not those of the start.
SCALED = ARCH_NET | dict(
    backbone=dict(
        ARCH_NET['backbone'],
        scaling=dict(width=0.5),
        init_cfg=dict(type='Pretrained', checkpoint='gone.pth', prefix='backbone.'),
    )
)


@pytest.mark.parametrize(
    ('model', 'of'),
    [
        (SCALED, 'search'),
        (SCALED, 'recipe'),
        (RESNET, 'search'),
        (RESNET, 'recipe'),
        (RESNET, 'pruned'),
    ],
)
def test_retraining_needs_no_number(model, of, make_search, tmp_path):
    """The written config builds what was found, whatever it inherits from, wherever it lies."""
    config, search, out = make_search(copy.deepcopy(model))
    config.custom_hooks = HOOKS
    config = config_file(tmp_path / 'search.py', **config)
    recipe = None
    if of != 'search':
        model = model | dict(backbone=dict(model['backbone'], norm_eval=True))
        if of == 'pruned':
            model = dict(type='mmscale.PrunedModel', pruned='old.json', model=model)
        recipe = config_file(tmp_path / 'recipe.py', model=model, custom_hooks=HOOKS[:1])
    report = export_search(config, search.state_dict(), out, recipe).to_json()
    assert report['files'][-1] == str(out / 'retrain.py')
    if model is SCALED:
        assert read_origin(out / 'arch.json').config == 'search.py'
    # Of its parents only the place counts; the folder itself may move.
    moved = tmp_path / 'moved'
    shutil.copytree(out, moved)
    shutil.rmtree(out)
    found = Config.fromfile(moved / 'retrain.py')
    assert found.custom_hooks == HOOKS[:1]
    assert found.default_scope == 'mmpretrain' if recipe is None else 'default_scope' not in found
    assert found.load_from == f'{moved}/weights.pth'
    assert found.work_dir == f'{moved}/retrain'
    small = build_module(found.model.to_dict()).eval()
    assert small.backbone.norm_eval == (of != 'search')
    small.init_weights()
    small.load_state_dict(torch.load(found.load_from, weights_only=True)['state_dict'])
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(small(x), search(x), rtol=1e-4, atol=1e-6)


def test_a_recipe_of_another_kind(make_search, tmp_path):
    config, search, out = make_search(ARCH_NET)
    recipe = config_file(tmp_path / 'recipe.py', optim_wrapper=dict())
    with pytest.raises(ValueError, match=r'recipe=.*recipe.py has no model'):
        export_search(config, search.state_dict(), out, recipe)
    recipe = config_file(tmp_path / 'recipe.py', model=RESNET)
    with pytest.raises(ValueError, match=r'recipe.py: its model has no mmscale.ArchNet'):
        export_search(config, search.state_dict(), out, recipe)
    assert not out.exists()


def test_search_errors(make_search):
    config, search, out = make_search(RESNET)
    state = search.state_dict()
    del state['gates.backbone/conv1.importance']
    with pytest.raises(ValueError, match=r'not of this config: .*gates.backbone/conv1.importance'):
        export_search(config, state, out)
    with pytest.raises(
        ValueError, match=r'model.type=mmpretrain.ImageClassifier is not a mmscale'
    ):
        export_search(Config(dict(model=RESNET)), state, out)
    assert not out.exists()


LAZY = """
from mmpretrain.datasets import CustomDataset, PackInputs
from mmpretrain.evaluation import Accuracy
from mmpretrain.models import GlobalAveragePooling, ImageClassifier, LinearClsHead, ResNet
from mmscale.engine import DMSHook, StrictLoadHook
from mmscale.models import DMSModel

default_scope = 'mmpretrain'
classifier = dict(
    type=ImageClassifier,
    backbone=dict(type=ResNet, depth=18, base_channels=8, stem_channels=8),
    neck=dict(type=GlobalAveragePooling),
    head=dict(type=LinearClsHead, num_classes=2, in_channels=64, topk=(1, 5)),
)
model = dict(type=DMSModel, target=0.5, input_shape=(3, 32, 32), model=classifier)
custom_hooks = [dict(type=DMSHook), dict(type=StrictLoadHook)]
val_evaluator = dict(type=Accuracy, topk=(1, 5))
test_dataloader = dict(dataset=dict(type=CustomDataset, pipeline=[dict(type=PackInputs)]))
"""


def test_a_pure_python_search_in_a_folder_with_an_apostrophe(tmp_path):
    folder = tmp_path / "o'neil"
    folder.mkdir()
    (folder / 'search.py').write_text(LAZY)
    config = Config.fromfile(folder / 'search.py')
    search = build_module(config.model)
    wrapped = {f'module.{key}': value for key, value in search.state_dict().items()}
    export_search(config, wrapped, folder / 'pruned')
    found = Config.fromfile(folder / 'pruned' / 'retrain.py')
    assert found.model.type == 'mmscale.PrunedModel'
    assert found.model.model.head.topk == found.val_evaluator.topk == (1,)
    assert [hook.type for hook in found.custom_hooks] == ['mmscale.engine.StrictLoadHook']
    assert found.load_from == str(folder / 'pruned' / 'weights.pth')
    small = build_module(found.model.to_dict())
    small.load_state_dict(torch.load(found.load_from, weights_only=True)['state_dict'])
    with pytest.raises(ValueError, match=r'MMEngine cannot read configs .* a backslash'):
        export_search(config, wrapped, tmp_path / 'a\\b')
    assert not (tmp_path / 'a\\b').exists()
