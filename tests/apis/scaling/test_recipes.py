"""Every config that is written for a scaled network builds, and trains it for a step."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from mmscale.apis.scaling.archs import scale
from mmscale.apis.scaling.backbones import BaseConfig
from mmscale.apis.scaling.recipes import (
    check_output,
    load_recipe,
    recipe_of,
    write_networks,
)
from mmscale.arch import (
    Rounding,
    Scaling,
    ScalingRule,
    apply_scaling,
    get_arch,
)
from mmscale.arch.origin import Origin, read_origin
from mmscale.cost import count, count_module
from mmscale.errors import UsageError
from mmscale.models import ArchNet
from mmscale.registry import MODELS

ROOT = Path(__file__).parents[3]
DIGITS = ROOT / 'configs/scalenet/archs/digits-s0.json'
# A base model per recipe, small ones.
BASES = (
    'EfficientNet-B0',
    'MobileNetV2',
    'MobileNetV3-Small',
    'RegNetX-200MF',
    'RegNetY-200MF',
    'ResNet-18',
    'ResNeXt-50',
    'ScaleNet-S0',
)


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """A folder of three small pictures in two classes."""
    import cv2

    folder = tmp_path_factory.mktemp('images')
    rng = np.random.default_rng(0)
    for i in range(3):
        path = folder / f'class{i % 2}' / f'{i}.jpg'
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), rng.integers(0, 255, (70, 90, 3), np.uint8))
    return folder


def train_one_step(path, images, work_dir):
    """Trains the config's own model, through its own pipeline, on two images."""
    config = Config.fromfile(path)
    loader = copy.deepcopy(config.train_dataloader)
    dataset = loader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    if dataset.type == 'ImageNet':
        dataset.update(type='CustomDataset', data_root='', data_prefix=str(images))
        dataset.pop('split')
    elif dataset.type == 'mmscale.ClutteredDigits':
        dataset.num_images = 4  # of twenty thousand, which take long to draw
    loader.update(batch_size=2, num_workers=0, persistent_workers=False, pin_memory=False)
    config.train_dataloader = loader
    config.train_cfg = dict(by_epoch=False, max_iters=1)
    for key in ('val_dataloader', 'val_cfg', 'val_evaluator', 'param_scheduler'):
        config[key] = None
    for key in ('test_dataloader', 'test_cfg', 'test_evaluator'):
        config[key] = None
    # It would go through thousands of images.
    config.custom_hooks = [
        hook for hook in config.get('custom_hooks', []) if hook.type != 'PreciseBNHook'
    ]
    config.update(work_dir=str(work_dir), experiment_name=f'{path.stem}-{work_dir.name}')
    config.default_hooks.checkpoint = None
    runner = Runner.from_cfg(config)
    sizes = []
    runner.model.backbone.register_forward_pre_hook(
        lambda module, inputs: sizes.append(tuple(inputs[0].shape))
    )
    runner.train()
    return runner.model, sizes


@pytest.mark.slow
@pytest.mark.parametrize('name', BASES)
def test_a_config_trains_its_network_for_a_step(name, images, tmp_path):
    base = get_arch(name)
    tiny = Scaling(resolution=64 / base.resolution)
    small = apply_scaling(base, tiny, 'pycls', Rounding('nearest', 8, 32))
    networks = scale(small, ['dWr'], [0.5], name=name)
    write_networks(networks, recipe_of(name, small), tmp_path)
    (network,) = networks
    path = tmp_path / f'{network.label}.py'
    model, sizes = train_one_step(path, images, tmp_path / 'work')
    assert isinstance(model.backbone, ArchNet)
    assert model.backbone.arch == network.arch
    side = network.arch.resolution
    assert sizes[0][2:] == (side, side)
    assert model.head.num_classes == 1000
    config = Config.fromfile(path)
    recipe = load_recipe(recipe_of(name, small))
    for key in ('optim_wrapper', 'param_scheduler', 'train_cfg', 'data_preprocessor'):
        assert config[key] == recipe[key]
    for pipeline in (config.val_dataloader.dataset.pipeline,):
        crops = [t for t in pipeline if 'Crop' in t.type]
        assert [t.get('crop_size', side) for t in crops] == [side]


@pytest.mark.slow
def test_a_digit_network_trains_by_the_digits_recipe(images, tmp_path):
    networks = scale(DIGITS, ['dwr'], [1], name='digits-s0')
    recipe = recipe_of('digits-s0', networks[0].arch, read_origin(DIGITS))
    assert Path(recipe).name == 'arch-net_digits.py'
    write_networks(networks, recipe, tmp_path)
    path = tmp_path / f'{networks[0].label}.py'
    model, sizes = train_one_step(path, images, tmp_path / 'work')
    assert model.backbone.arch == networks[0].arch
    assert sizes[0] == (2, 1, networks[0].arch.resolution, networks[0].arch.resolution)


@pytest.mark.slow
@pytest.mark.parametrize(
    'name', ['efficientnet-b0-fast-2x_8xb32_in1k', 'regnety-400mf-fast-4x_8xb128_in1k']
)
def test_the_written_out_configs_train_at_the_size_of_their_network(name, images, tmp_path):
    path = ROOT / 'configs' / 'fast_scaling' / f'{name}.py'
    model, sizes = train_one_step(path, images, tmp_path / 'work')
    side = model.backbone.arch.resolution
    assert side > 224 and sizes[0] == (2, 3, side, side)


@pytest.mark.slow
def test_a_config_of_another_backbone_trains_for_a_step(images, tmp_path):
    import mmpretrain

    folder = Path(mmpretrain.__file__).parent / '.mim/configs'
    stock = folder / 'mobilenet_v2/mobilenet-v2_8xb32_in1k.py'
    base = BaseConfig(str(stock), Config.fromfile(stock))
    assert (base.network.resolution, base.name) == (224, 'mobilenet-v2_8xb32_in1k')
    assert base.unscaled().cost == base.cost
    rule = ScalingRule('mine', depth=0.4, width=0.2, resolution=0.9)
    network = base.reference(rule, 0.25)
    assert network.resolution == 64
    assert network.to_json()['depths'] == [1, 1, 2, 2, 2, 2, 1]
    matched = scale(stock, 'dWr', 2, mode='matched', tolerance=0.1)[0]
    assert matched.achieved == pytest.approx(2 * base.cost.flops, rel=0.1)
    write_networks([network], str(stock), tmp_path)
    path = tmp_path / f'{network.label}.py'
    text = path.read_text(encoding='utf-8')
    assert "_base_ = 'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py'" in text
    model, sizes = train_one_step(path, images, tmp_path / 'work')
    assert sizes[0] == (2, 3, 64, 64)
    assert sum(p.numel() for p in model.parameters()) == network.cost.params
    assert not (tmp_path / 'archs').exists()


def test_a_config_of_an_arch_net_is_its_own_recipe(tmp_path):
    own = ROOT / 'configs/scalenet/scalenet-s1_8xb128_in1k.py'
    networks = scale('scalenet-s1', ['w'], [2])
    write_networks(networks, str(own), tmp_path)
    config = Config.fromfile(tmp_path / f'{networks[0].label}.py')
    assert config.model.head.type == 'mmscale.DropoutClsHead'
    assert get_arch(config.model.backbone.arch) == networks[0].arch
    assert config.model.head.in_channels == networks[0].arch.feature_channels
    rows = json.loads((tmp_path / 'networks.json').read_text(encoding='utf-8'))
    assert rows == [networks[0].to_json()]


@pytest.mark.parametrize('hidden', [0, 24])
def test_heads_with_and_without_a_hidden_layer(hidden, tmp_path):
    digits = get_arch(DIGITS)
    arch = replace(digits, head=replace(digits.head, hidden_channels=hidden, act='silu'))
    own = tmp_path / 'own.py'
    stacked = dict(type='StackedLinearClsHead', _delete_=True, num_classes=10, in_channels=96)
    stacked |= dict(mid_channels=[8], act_cfg=dict(type='ReLU'), topk=(1,))
    own.write_text(f'_base_ = {str(ROOT / "configs/scalenet/arch-net_digits.py")!r}\n'
                   f'model = dict(head={stacked!r})\n')  # fmt: skip
    for recipe in (str(ROOT / 'configs/scalenet/arch-net_digits.py'), str(own)):
        networks = scale(arch, ['w'], [2], name='mine')
        folder = tmp_path / Path(recipe).stem
        write_networks(networks, recipe, folder)
        config = Config.fromfile(folder / f'{networks[0].label}.py')
        assert config.model.head.topk == (1,)
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            model = MODELS.build(config.model)
        side = networks[0].arch.resolution
        cost = count_module(model, (1, side, side), memory=False).cost
        assert cost == count(networks[0].arch)


def test_networks_without_a_name_have_a_recipe_too():
    assert 'efficientnet' in recipe_of('mine', get_arch('EfficientNet-B0'))
    assert 'resnet' in recipe_of('mine', get_arch('RegNetX-200MF'))
    recipe = recipe_of('mine', get_arch(DIGITS), read_origin(DIGITS))
    assert recipe.endswith('configs/scalenet/arch-net_digits.py')


@pytest.mark.parametrize(
    ('name', 'changes', 'origin', 'said'),
    [
        ('mine', dict(num_classes=3), None, '3 channels and 3 classes, whose config is not rem'),
        ('resnet-mine', dict(num_classes=3), None, 'the nearest is for ImageNet'),
        ('mine', {}, Origin(dataset='Places'), 'from data: Places (the nearest is for ImageNet)'),
        ('mine', dict(num_classes=0), None, '3 channels and 0 classes'),
        (DIGITS, {}, None, '1 channels and 10 classes, whose config is not remembered'),
        (DIGITS, {}, Origin('s.py', 'FashionMNIST'), 'from s.py, data: FashionMNIST'),
        (DIGITS, dict(num_classes=3), read_origin(DIGITS), 'the nearest is for ClutteredDigits'),
    ],
)
def test_no_recipe_is_one_for_other_data(name, changes, origin, said):
    arch = get_arch(DIGITS if name == DIGITS else 'ResNet-18')
    arch = replace(arch, head=replace(arch.head, **changes))
    with pytest.raises(UsageError, match=r'data_config \(--data-config CONFIG\)') as error:
        recipe_of('found', arch, origin) if name == DIGITS else recipe_of(name, arch, origin)
    assert said in str(error.value) and '\n' not in str(error.value)


def test_files_are_not_written_over(tmp_path):
    networks = scale('RegNetX-200MF', ['w'], [2])
    labels = [network.label for network in networks]
    check_output(labels, tmp_path)
    write_networks(networks, recipe_of('RegNetX-200MF', networks[0].arch), tmp_path)
    with pytest.raises(ValueError, match=r'regnetx-200mf_w_x2.py exists'):
        check_output(labels, tmp_path)
    with pytest.raises(ValueError, match=r'networks.json exists'):
        check_output(['other'], tmp_path)
    with pytest.raises(ValueError, match='is a file, not a folder'):
        check_output(labels, tmp_path / 'networks.json')
