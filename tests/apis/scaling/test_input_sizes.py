"""All sizes in a config's pipelines grow with the input of its scaled network, or one is named."""

import json
from pathlib import Path

import pytest
from mmengine.config import Config

from mmscale.apis.cost import get_cost
from mmscale.apis.input_shape import config_input
from mmscale.apis.networks import build_module
from mmscale.apis.scaling.archs import scale
from mmscale.apis.scaling.backbones import BaseConfig
from mmscale.apis.scaling.input_sizes import resized_pipeline
from mmscale.apis.scaling.recipes import write_networks
from mmscale.arch import ScalingRule
from mmscale.errors import UsageError

ROOT = Path(__file__).parents[3]


def test_sizes_before_the_crop_keep_their_ratio():
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='ResizeEdge', scale=256, edge='short'),
        dict(type='mmpretrain.CenterCrop', crop_size=(224, 224)),
    ]
    assert resized_pipeline(pipeline, (224, 224), (448, 448))[1:] == [
        dict(type='ResizeEdge', scale=512, edge='short'),
        dict(type='mmpretrain.CenterCrop', crop_size=(448, 448)),
    ]
    assert pipeline[1]['scale'] == 256
    assert resized_pipeline([dict(type='Resize', scale=(32, -1))], (32, 32), (40, 40)) == [
        dict(type='Resize', scale=(40, -1))
    ]
    assert resized_pipeline([dict(type='PackInputs')], (32, 32), (40, 40)) == [
        dict(type='PackInputs')
    ]


def test_all_sizes_of_a_detector_grow_alike():
    flip = dict(type='RandomFlip', prob=0.5)
    pipeline = [
        dict(type='Mosaic', img_scale=(640, 640), pad_val=114.0),
        dict(type='RandomAffine', scaling_ratio_range=(0.1, 2), border=(-320, -320)),
        dict(type='RandomResize', scale=[(1280, 640), (1280, 800)], keep_ratio=True),
        dict(type='RandomChoiceResize', scales=[(640, 480), 600], keep_ratio=True),
        dict(type='RandomCrop', crop_type='relative_range', crop_size=(0.3, 0.7)),
        dict(type='RandomApply', transforms=[dict(type='Pad', size=(640, 640), pad_val=114)]),
        flip,
    ]
    assert resized_pipeline(pipeline, (640, 1280), (960, 1920)) == [
        dict(type='Mosaic', img_scale=(960, 960), pad_val=114.0),
        dict(type='RandomAffine', scaling_ratio_range=(0.1, 2), border=(-480, -480)),
        dict(type='RandomResize', scale=[(1920, 960), (1920, 1200)], keep_ratio=True),
        dict(type='RandomChoiceResize', scales=[(960, 720), 900], keep_ratio=True),
        dict(type='RandomCrop', crop_type='relative_range', crop_size=(0.3, 0.7)),
        dict(type='RandomApply', transforms=[dict(type='Pad', size=(960, 960), pad_val=114)]),
        flip,
    ]


def test_the_two_sides_may_grow_by_other_factors():
    pipeline = [
        dict(type='CenterCrop', crop_size=(128, 256)),  # MMCV: (width, height)
        dict(type='RandomResizedCrop', scale=(256, 128)),  # mmpretrain: (height, width)
    ]
    assert resized_pipeline(pipeline, (256, 128), (320, 192)) == [
        dict(type='CenterCrop', crop_size=(192, 320)),
        dict(type='RandomResizedCrop', scale=(320, 192)),
    ]


SMALL = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet', depth=18, base_channels=8, stem_channels=8),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=64),
)
"""
RESOLUTION = ScalingRule('r', 0, 0, 0.5)
WIDTH = ScalingRule('w', 0, 0.5, 0)


def scaled_child(text, rule, folder):
    """A config, what a rule makes of it at four times its cost, and the config for that."""
    base = folder / 'base.py'
    base.write_text(text, encoding='utf-8')
    config = Config.fromfile(base)
    network = BaseConfig(str(base), config).reference(rule, 4)
    write_networks([network], str(base), folder / 'out')
    return config, network, Config.fromfile(folder / 'out' / f'{network.label}.py')


def test_every_dataset_in_a_dataset_gets_the_size(tmp_path):
    data = """
crop = dict(type='CenterCrop', crop_size=128)
part = dict(type='CustomDataset', pipeline=[dict(type='LoadImageFromFile'), crop])
flips = [dict(type='RandomApply', prob=0.5, transforms=[crop])]
both = dict(type='ConcatDataset', datasets=[dict(part, data_root='a'), dict(part, pipeline=flips)])
train_dataloader = dict(batch_size=2, dataset=dict(type='RepeatDataset', times=2, dataset=both))
test_dataloader = dict(dataset=dict(type='ClassBalancedDataset', oversample_thr=1, dataset=part))
"""
    config, network, child = scaled_child(SMALL + data, RESOLUTION, tmp_path)
    assert network.resolution == 256
    for loader in ('train_dataloader', 'test_dataloader'):
        text = json.dumps(config[loader].to_dict()).replace(' 128', ' 256')
        assert child[loader].to_dict() == json.loads(text)


PEOPLE = """
resize = dict(type='Resize', scale=(144, 288))
part = dict(
    type='CustomDataset',
    pipeline=[resize, dict(type='CenterCrop', crop_size=(128, 256)), dict(type='PackInputs')],
)
train_dataloader = test_dataloader = dict(dataset=part)
"""


def test_the_sides_of_a_rectangle_are_kept_or_grow_by_one_factor(tmp_path):
    config, network, child = scaled_child(SMALL + PEOPLE, WIDTH, tmp_path)
    assert network.resolution == (256, 128)
    assert child.train_dataloader == config.train_dataloader
    (tmp_path / 'grown').mkdir()
    _, network, child = scaled_child(SMALL + PEOPLE, RESOLUTION, tmp_path / 'grown')
    assert network.resolution == (512, 256)
    for loader in (child.train_dataloader, child.test_dataloader):
        resize, crop, _ = loader.dataset.pipeline
        assert (resize.scale, crop.crop_size) == ((288, 576), (256, 512))
    assert get_cost(child).flops == network.cost.flops
    # Every map is four times as large.
    before = get_cost(config)
    assert (before.shape, network.cost.acts) == ((256, 128), 4 * (before.acts - 2) + 2)
    text = (tmp_path / 'grown' / 'out' / f'{network.label}.py').read_text(encoding='utf-8')
    assert 'at 512 x 256 px' in text


LAZY = """
from mmcv.transforms import CenterCrop
from mmpretrain.datasets import CustomDataset, PackInputs
from mmpretrain.models import GlobalAveragePooling, ImageClassifier, LinearClsHead, ResNet

default_scope = 'mmpretrain'
model = dict(
    type=ImageClassifier,
    backbone=dict(type=ResNet, depth=18, base_channels=8, stem_channels=8),
    neck=dict(type=GlobalAveragePooling),
    head=dict(type=LinearClsHead, num_classes=2, in_channels=64),
)
pipeline = [dict(type=CenterCrop, crop_size=128), dict(type=PackInputs)]
test_dataloader = dict(dataset=dict(type=CustomDataset, data_root='a', pipeline=pipeline))
"""


def test_a_pure_python_config_is_scaled_into_one_that_builds(tmp_path):
    _, network, child = scaled_child(LAZY, ScalingRule('wr', 0, 0.25, 0.25), tmp_path)
    assert network.resolution == 192
    assert config_input(child, None).shape == (3, 192, 192)
    model = build_module(child.model)
    assert type(model.backbone).__name__ == 'ScalableResNet'
    assert sum(p.numel() for p in model.parameters()) == network.cost.params
    assert get_cost(child).flops == network.cost.flops


def test_a_size_that_no_name_says_is_told(tmp_path):
    resize = """
crop = dict(type='torchvision/CenterCrop', size=64)
pipeline = [dict(type='NumpyToPIL'), crop, dict(type='PILToNumpy')]
test_dataloader = dict(dataset=dict(type='CustomDataset', pipeline=pipeline))
"""
    text = SMALL + resize
    with pytest.raises(UsageError, match='is for images of 128 px, but the test pipeline of its'):
        scaled_child(text, RESOLUTION, tmp_path)
    assert scaled_child(text, WIDTH, tmp_path)[1].resolution == 64


BESIDES = """
def crop(side):
    return [dict(type='ResizeEdge', scale=side + 16), dict(type='CenterCrop', crop_size=side)]


data = dict(type='CustomDataset', data_root='a', pipeline=crop(128))
train_dataloader = test_dataloader = dict(dataset=data)
tta_pipeline = [dict(type='TestTimeAug', transforms=[[one] for one in crop(128)])]
custom_hooks = [
    dict(type='EMAHook'),
    dict(type='PipelineSwitchHook', switch_epoch=3, switch_pipeline=crop(96)),
    dict(
        type='SwitchRecipeHook',
        schedule=[
            dict(action_epoch=5, batch_augments=None),
            dict(action_epoch=7, train_pipeline=crop(64)),
            dict(action_epoch=8, pipeline=crop(128)),
        ],
    ),
]
del crop
"""


def test_pipelines_beside_those_of_the_loaders_grow_too(tmp_path):
    config, network, child = scaled_child(SMALL + BESIDES, RESOLUTION, tmp_path)
    assert network.resolution == 256
    switch, schedule = child.custom_hooks[1:]
    assert switch.switch_epoch == 3 and child.custom_hooks[0] == config.custom_hooks[0]
    assert schedule.schedule[0] == dict(action_epoch=5, batch_augments=None)
    for pipeline, side in (
        (child.train_dataloader.dataset.pipeline, 256),
        (child.test_dataloader.dataset.pipeline, 256),
        ([one for (one,) in child.tta_pipeline[0].transforms], 256),
        (switch.switch_pipeline, 192),
        (schedule.schedule[1].train_pipeline, 128),
        (schedule.schedule[2].pipeline, 256),
    ):
        assert [one.type for one in pipeline] == ['ResizeEdge', 'CenterCrop']
        assert pipeline[1].crop_size == side
        assert pipeline[0].scale == side + 32


UNKNOWN = 'dict(type="torchvision/RandomResizedCrop", size=128)'
TRAIN = 'train_dataloader = dict(dataset=dict(type="CustomDataset", pipeline=[{}]))'


@pytest.mark.parametrize(
    ('added', 'said'),
    [
        (TRAIN.format(f'dict(type="NumpyToPIL"), {UNKNOWN}'), 'the training pipeline of its rec'),
        (
            'small = dict(type="CustomDataset", pipeline=[crop])\n'
            'other = dict(type="CustomDataset", pipeline=[dict(type="NumpyToPIL"), '
            f'{UNKNOWN}])\n'
            'both = dict(type="ConcatDataset", datasets=[small, other])\n'
            'train_dataloader = dict(dataset=dict(type="RepeatDataset", times=2, dataset=both))',
            'the training pipeline of dataset 2 of its recipe makes 128 px',
        ),
        # One that is smaller than the crop's new size, before it.
        (
            TRAIN.format(
                'dict(type="NumpyToPIL"), dict(type="torchvision/Resize", size=(144, 144)), '
                'dict(type="PILToNumpy"), dict(type="CenterCrop", crop_size=128)'
            ),
            'the training pipeline of its recipe makes 144 px',
        ),
        (
            TRAIN.format('dict(type="Albumentations", transforms=[dict('
            'type="RandomResizedCrop", size=(128, 128), scale=(0.5, 1))])'),
            r'has RandomResizedCrop\(size=\(128, 128\)\), which is not known by name',
        ),
        (
            TRAIN.format('dict(type="CenterCrop", crop_size=192), '
            'dict(type="SimMIMMaskGenerator", input_size=192)'),
            r'dataset.pipeline of its recipe has SimMIMMaskGenerator\(input_size=192\)',
        ),
        (f'tta_pipeline = [dict(type="NumpyToPIL"), {UNKNOWN}]', 'but tta_pipeline of its recipe'),
        (
            'custom_hooks = [dict(type="SwitchRecipeHook", schedule=[dict(train_pipeline='
            f'[dict(type="NumpyToPIL"), {UNKNOWN}])])]',
            r'custom_hooks\[0\].schedule\[0\].train_pipeline of its recipe makes 128 px',
        ),
    ],
)  # fmt: skip
def test_no_pipeline_is_left_behind_in_silence(added, said, tmp_path):
    test = """
crop = dict(type='CenterCrop', crop_size=128)
test_dataloader = dict(dataset=dict(type='CustomDataset', pipeline=[crop]))
"""
    text = f'{SMALL}{test}{added}\n'
    with pytest.raises(UsageError, match=said) as error:
        scaled_child(text, RESOLUTION, tmp_path)
    assert 'is for images of 256 px' in str(error.value) and '\n' not in str(error.value)
    assert not (tmp_path / 'out').exists()
    assert scaled_child(text, WIDTH, tmp_path)[1].resolution == 128


def follower(pipeline, folder):
    """A config whose pipelines follow an Arch, but for what a pipeline says itself."""
    path = folder / 'own.py'
    path.write_text(
        f'_base_ = {str(ROOT / "configs/scalenet/digits-s1.py")!r}\n'
        f'pipeline = [{pipeline}, dict(type="PackInputs")]\n'
        'images = dict(_delete_=True, type="CustomDataset", data_root="a", pipeline=pipeline)\n'
        'train_dataloader = val_dataloader = test_dataloader = dict(dataset=images)\n',
        encoding='utf-8',
    )
    return path


@pytest.mark.parametrize(
    ('pipeline', 'grown'),
    [
        ('dict(type="Resize", scale=28)', dict(type='Resize', scale=60)),
        (
            'dict(type="mmscale.ResizeToResolution", resolution=30)',
            dict(type='mmscale.ResizeToResolution', resolution=60),
        ),
        (
            'dict(type="mmscale.ResizeToResolution")',
            dict(type='mmscale.ResizeToResolution'),
        ),
    ],
)
def test_what_does_not_follow_the_arch_grows(pipeline, grown, tmp_path):
    own = follower(pipeline, tmp_path)
    networks = scale(own, ['r'], [4])
    assert networks[0].arch.resolution == 60
    write_networks(networks, str(own), tmp_path / 'out')
    child = Config.fromfile(tmp_path / 'out' / f'{networks[0].label}.py')
    for loader in (child.train_dataloader, child.val_dataloader, child.test_dataloader):
        assert loader.dataset.pipeline == [grown, dict(type='PackInputs')]
    assert get_cost(child).shape == (60, 60)


def test_what_does_not_follow_the_arch_by_an_unknown_name_is_told(tmp_path):
    unknown = 'dict(type="NumpyToPIL"), dict(type="torchvision/Resize", size=(30, 30))'
    own = follower(unknown, tmp_path)
    with pytest.raises(
        UsageError, match=r'of 60 px, but .* has torchvision/Resize\(size=\(30, 30\)\)'
    ):
        write_networks(scale(own, ['r'], [4]), str(own), tmp_path / 'out')
