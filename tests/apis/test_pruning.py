"""apis.prune: by a fraction, by groups, and the outcome of a search."""

import copy
import json
import shutil
from functools import partial

import pytest
import torch
import torchvision
from mmengine.config import Config
from mmengine.registry import MODELS
from mmpretrain.structures import DataSample
from torch import nn

from mmscale.apis import pruning
from mmscale.apis.networks import build_module
from mmscale.apis.pruned_files import export_search
from mmscale.apis.pruning import channel_groups, prune
from mmscale.arch import Arch
from mmscale.arch.origin import read_origin
from mmscale.cost import count, count_module
from mmscale.models import ArchNet, SuperNet
from mmscale.models.dms.importance import element_importance

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


def labelled(count=3, size=6):
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(size, 3, 32, 32, generator=generator),
            torch.randint(4, (size,), generator=generator),
        )
        for _ in range(count)
    ]


def samples_of(batches):
    """The same as a train_dataloader of MMEngine gives it."""
    return [
        dict(
            inputs=list(images),
            data_samples=[DataSample().set_gt_label(label) for label in labels.tolist()],
        )
        for images, labels in batches
    ]


def test_taylor_keeps_what_the_loss_depends_on(model):
    """Against finite differences of the loss on a scale of each channel."""
    name = 'backbone.layer1.0.conv1'
    batches = samples_of(labelled())
    found = element_importance(
        model, channel_groups(model, IMAGE), 'taylor', batches, pruning._own_losses
    )[name]
    layer = model.get_submodule('backbone.layer1.0.conv2')
    weight = layer.weight.detach().clone()
    expected = torch.zeros(len(found), dtype=torch.float64)
    model.double().eval()
    for batch in batches:
        for channel in range(len(found)):
            losses = []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    layer.weight.copy_(weight)
                    layer.weight[:, channel] *= 1 + step
                    data = model.data_preprocessor(batch, True)
                    data['inputs'] = data['inputs'].double()
                    losses.append(float(model(**data, mode='loss')['loss']))
            expected[channel] += ((losses[0] - losses[1]) / 2e-5) ** 2 / len(batches)
    torch.testing.assert_close(found.double(), expected, rtol=2e-2, atol=1e-10)
    with torch.no_grad():
        layer.weight.copy_(weight)
    small, _ = prune(model.float(), IMAGE, {name: 0.5}, 'taylor', batches, calibration_images=0)
    kept = found.topk(4).indices.sort().values
    assert torch.equal(small.get_submodule(name).weight, model.get_submodule(name).weight[kept])


@pytest.mark.parametrize(('importance', 'scope'), [('l1', 'group'), ('taylor', 'model')])
@pytest.mark.parametrize('metric', ['flops', 'params'])
def test_a_share_of_the_cost(importance, scope, metric, model):
    whole = getattr(count_module(model, inputs=IMAGE, memory=False), metric)
    small, cost = prune(
        model, IMAGE, 0.6, importance, samples_of(labelled()), metric=metric, scope=scope
    )
    assert 0.54 * whole < getattr(cost, metric) <= 0.6 * whole
    widths = [module.out_channels for module in small.modules() if isinstance(module, nn.Conv2d)]
    shares = {
        round(width / module.out_channels, 1)
        for width, module in zip(
            widths, (m for m in model.modules() if isinstance(m, nn.Conv2d)), strict=True
        )
    }
    assert (len(shares) > 3) == (scope == 'model')


@pytest.mark.parametrize('of_mmengine', [True, False])
def test_batches_give_the_statistics_of_what_is_left(of_mmengine, model):
    batches = labelled()
    if not of_mmengine:
        model = torchvision.models.mobilenet_v2(num_classes=4).eval()
    given = samples_of(batches) if of_mmengine else batches
    small, _ = prune(model, IMAGE, 0.5, batches=given)
    assert not small.training
    first = next(m for m in small.modules() if isinstance(m, nn.BatchNorm2d))
    conv = next(m for m in small.modules() if isinstance(m, nn.Conv2d))
    with torch.no_grad():
        maps = torch.cat([conv(images) for images, _ in batches])
    torch.testing.assert_close(first.running_mean, maps.mean(dim=(0, 2, 3)), rtol=1e-3, atol=1e-4)
    left, _ = prune(model, IMAGE, 0.5, batches=given, calibration_images=0)
    first = next(m for m in left.modules() if isinstance(m, nn.BatchNorm2d))
    assert not first.running_mean.any()


def test_taylor_of_any_module_with_a_loss_of_its_own():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    inputs = torch.randn(16, 6)
    with torch.no_grad():
        network[2].weight[:, [1, 4]] = 0
    small, _ = prune(
        network,
        [inputs[:1]],
        0.75,
        'taylor',
        [inputs],
        loss=lambda model, batch: model(batch).square().mean(),
    )
    assert torch.equal(small[0].weight, network[0].weight[[0, 2, 3, 5, 6, 7]])
    assert all(parameter.grad is None for parameter in network.parameters())


def test_batch_norms_that_are_frozen_stay_so(model):
    model.train()
    model.backbone.bn1.eval()
    model.backbone.bn1.running_mean.fill_(0.25)
    small, _ = prune(model, IMAGE, 0.5, 'taylor', samples_of(labelled()))
    assert small.training and small.backbone.layer1[0].bn1.training
    assert not small.backbone.bn1.training
    assert small.backbone.bn1.running_mean.eq(0.25).all()
    assert small.backbone.layer1[0].bn1.running_mean.any()
    assert model.training and not model.backbone.bn1.training


def test_no_more_of_the_share_is_left_than_has_to_be():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1))
    whole = count_module(network, inputs=IMAGE, memory=False).flops
    _, cost = prune(network, IMAGE, 0.95, metric='flops')
    assert 0.85 * whole < cost.flops <= 0.95 * whole


def test_wrong_settings_of_prune(model, refuses):
    refuses(
        partial(prune, model, IMAGE, 0.5),
        importance=['l2'],
        scope=['layer'],
        taylor_batches=[0],
        calibration_images=[-1],
        metric=['energy'],
    )
    for settings, message in (
        (dict(importance='taylor'), 'needs batches of training data'),
        (dict(batches=iter([])), 'gone through once'),
        (dict(scope='model'), 'needs a metric'),
        (dict(importance='taylor', batches=[]), 'there are none'),
        (dict(batches=[]), 'no batches to measure'),
        (dict(batches=5), 'batches=5 must be'),
        (dict(importance='taylor', batches=[5]), 'the loss of batch 0'),
        (dict(importance='taylor', batches=[5], loss=lambda *_: 3.0), 'must be a scalar tensor'),
        (
            dict(importance='taylor', batches=[5], loss=lambda *_: torch.ones(2)),
            'must be a scalar',
        ),
        (dict(metric='flops', keep={'backbone.conv1': 0.5}), 'must be a fraction, as metric'),
        (dict(metric='flops', keep=1e-6), 'the smallest widths leave'),
    ):
        with pytest.raises(ValueError, match=message):
            prune(**{'model': model, 'inputs': IMAGE, 'keep': 0.5, **settings})
    images = [torch.zeros(1, 3, 64, 64)]
    with pytest.raises(ValueError, match='pairs of inputs and labels'):
        prune(torchvision.models.alexnet(), images, 0.5, 'taylor', [1])
    with pytest.raises(ValueError, match='a batch is a dict'):
        prune(torchvision.models.resnet18(), images, 0.5, batches=[{'image': images[0]}])


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
