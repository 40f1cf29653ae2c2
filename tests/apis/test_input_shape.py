"""The input of a config's model is what its own pipeline makes of images."""

import numpy as np
import pytest
from mmcv.transforms import CenterCrop, Compose, Resize
from mmengine.config import Config
from mmengine.registry import TRANSFORMS, DefaultScope
from mmpretrain.datasets import PackInputs
from torch import nn

from mmscale.apis.input_shape import config_input
from mmscale.apis.networks import build_network, config_image_shape
from mmscale.arch import get_arch
from mmscale.errors import UsageError

LOAD = dict(type='LoadImageFromFile')
PACK = dict(type='PackInputs')


def config_of(pipeline, **settings):
    dataset = dict(type='CustomDataset', pipeline=[LOAD, *pipeline, PACK])
    return Config(dict(model=dict(), test_dataloader=dict(dataset=dataset), **settings))


def run(pipeline, size):
    """What mmpretrain's own pipeline makes of an image of a size: channels, height, width."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        made = Compose([TRANSFORMS.build(dict(one)) for one in (*pipeline, PACK)])
        return tuple(made(dict(img=np.zeros((*size, 3), np.uint8)))['inputs'].shape)


@pytest.mark.parametrize(
    'pipeline',
    [
        # MMCV's pairs are (width, height).
        [dict(type='Resize', scale=(144, 288)), dict(type='CenterCrop', crop_size=(128, 256))],
        [dict(type='Resize', scale=(144, 288), keep_ratio=False)],
        [dict(type='Resize', scale=40)],
        [dict(type='mmcv.Resize', scale=(96, 48)), dict(type='Pad', size=(100, 64))],
        [dict(type='Resize', scale=(70, 50)), dict(type='Pad', size_divisor=32)],
        [dict(type='ResizeEdge', scale=72), dict(type='CenterCrop', crop_size=64)],
        [dict(type='ResizeEdge', scale=90, edge='long'), dict(type='Pad', size=(96, 96))],
        [dict(type='EfficientNetCenterCrop', crop_size=96, crop_padding=32)],
        [dict(type='EfficientNetRandomCrop', scale=80)],
        [dict(type='RandomResizedCrop', scale=(48, 80))],
        [dict(type='RandomCrop', crop_size=(56, 40))],
        [dict(type='mmscale.CenterCropToResolution', resolution=33)],
        [dict(type='mmscale.ResizeToResolution', resolution=33)],
        [dict(type='RandomApply', prob=1.0, transforms=[dict(type='Resize', scale=(24, 32))])],
        [dict(type='NumpyToPIL'), dict(type='torchvision/Resize', size=(20, 30))],
        [
            dict(type='NumpyToPIL'),
            dict(type='torchvision/CenterCrop', size=25),
            dict(type='PILToNumpy'),
        ],
        [dict(type=Resize, scale=(24, 32)), dict(type=CenterCrop, crop_size=(16, 24))],
    ],
)
def test_it_is_what_the_pipeline_makes_of_any_image(pipeline):
    shapes = {run(pipeline, size) for size in ((400, 400), (300, 500), (640, 360))}
    found = config_input(config_of(pipeline), nn.Identity())
    assert ({found.shape}, found.source) == (shapes, 'the test pipeline')


@pytest.mark.parametrize(
    ('pipeline', 'size'),
    [
        ([dict(type='Resize', scale=(1333, 800), keep_ratio=True)], (800, 1333)),
        ([dict(type='Resize', scale=(600, 1000), keep_ratio=True)], (1000, 600)),
        (
            [
                dict(type='Resize', scale=(640, 640), keep_ratio=True),
                dict(type='Pad', size=(640, 640), pad_val=dict(img=(114, 114, 114))),
            ],
            (640, 640),
        ),
        (
            [
                dict(type='CenterCrop', crop_size=(300, 200)),
                dict(type='Resize', scale=(64, 32), keep_ratio=True),
            ],
            (32, 48),
        ),
        ([dict(type='ResizeEdge', scale=50)], (50, 50)),
        # The largest of random sizes, the first of alternatives.
        ([dict(type='RandomResize', scale=[(1333, 640), (1333, 800)])], (800, 1333)),
        (
            [dict(type='RandomResize', scale=(64, 48), ratio_range=(0.5, 1), keep_ratio=True)],
            (48, 64),
        ),
        ([dict(type='RandomChoiceResize', scales=[40, 60, 50])], (60, 60)),
        (
            [
                dict(
                    type='RandomChoice',
                    transforms=[[dict(type='Resize', scale=40)], [dict(type='Resize', scale=50)]],
                )
            ],
            (40, 40),
        ),
        (
            [
                dict(
                    type='TestTimeAug',
                    transforms=[
                        [
                            dict(type='Resize', scale=s, keep_ratio=True)
                            for s in ((90, 60), (45, 30))
                        ],
                        [dict(type='RandomFlip', prob=p) for p in (0.0, 1.0)],
                        [PACK],
                    ],
                )
            ],
            (60, 90),
        ),
    ],
)
def test_sizes_that_keep_the_ratio_or_are_drawn(pipeline, size):
    assert config_image_shape(config_of(pipeline), nn.Identity()) == (3, *size)


def test_alternatives_to_a_test_pipeline():
    crop = dict(type='RandomResizedCrop', scale=48)
    train = dict(dataset=dict(type='ImageNet', pipeline=[LOAD, crop, PACK]))
    config = Config(dict(model=dict(), train_dataloader=train))
    assert config_input(config, nn.Identity()) == ((3, 48, 48), 'the training pipeline')
    config.val_dataloader = dict(dataset=dict(type='CIFAR10', pipeline=[PACK]))
    found = config_input(config, nn.Identity())
    assert found == ((3, 32, 32), 'the validation pipeline of images of CIFAR10')
    # It says no size: that is the image's own.
    config.val_dataloader = dict(dataset=dict(type='ImageNet', pipeline=[LOAD, PACK]))
    assert config_input(config, nn.Identity()).source == 'the training pipeline'


def test_a_transform_that_needs_more_than_an_image_is_named():
    cut = dict(type='Lambda', func=lambda results: results['gt_label'])
    found = config_input(config_of([cut, dict(type='Resize', scale=20)]), nn.Identity())
    assert found.shape == (3, 20, 20)
    assert found.source.startswith('the test pipeline (without Lambda, which')


def test_a_transform_that_is_built_already_is_run_too():
    loader = dict(dataset=dict(type='ImageNet', pipeline=[CenterCrop((20, 30)), PACK]))
    config = Config(dict(model=dict(), test_dataloader=loader))
    assert config_input(config, nn.Identity()) == ((3, 30, 20), 'the test pipeline')


def test_a_malformed_pipeline_is_one_line():
    with pytest.raises(UsageError, match=r'^the test pipeline cannot be read: .*NoneType'):
        config_input(config_of([dict(type='RandomApply')]), nn.Identity())


def test_chance_outside_is_left_alone():
    np.random.seed(3)
    config_input(config_of([dict(type='RandomCrop', crop_size=8)]), nn.Identity())
    drawn = np.random.rand()
    np.random.seed(3)
    assert drawn == np.random.rand()


def test_datasets_in_datasets_and_classes():
    pipeline = [dict(type=CenterCrop, crop_size=(16, 24)), dict(type=PackInputs)]
    both = dict(type='ConcatDataset', datasets=[dict(type='ImageNet', pipeline=pipeline)] * 2)
    loader = dict(dataset=dict(type='RepeatDataset', times=2, dataset=both))
    config = Config(dict(model=dict(), test_dataloader=loader))
    assert config_image_shape(config, nn.Identity()) == (3, 24, 16)


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('model = dict(backbone=dict(img_size=384))', (3, 384, 384)),
        ('model = dict(backbone=dict(in_channels=1))', (1, 224, 224)),
        (
            'model = dict(backbone=dict(img_size=1), data_preprocessor=dict(mean=[1]))\n'
            'test_dataloader = dict(dataset=dict(dataset=dict(pipeline=['
            "dict(type='ResizeEdge', scale=72), "
            "dict(type='mmpretrain.CenterCrop', crop_size=64)])))",
            (1, 64, 64),
        ),
        (
            'model = dict(data_preprocessor=dict(pad_size_divisor=32))\n'
            "test_pipeline = [dict(type='Resize', scale=(1333, 800))]",
            (3, 800, 1344),
        ),
        ("model = dict()\ntest_pipeline = [dict(type='ResizeEdge', scale=50)]", (3, 50, 50)),
    ],
)
def test_image_of_a_config(text, expected):
    assert config_image_shape(Config.fromstring(text, '.py'), nn.Identity()) == expected


def test_an_arch_says_what_the_pipeline_does_not():
    arch = get_arch('scalenet-s1')
    model = build_network(arch, meta=True)
    pipeline = [dict(type='mmscale.ResizeToResolution')]
    assert config_input(config_of(pipeline), model) == ((3, 256, 256), 'the test pipeline')
    # Without the hook it would be told as little.
    assert config_input(config_of([]), model) == ((3, 256, 256), 'the Arch')
    pipeline = [dict(type='Resize', scale=(1333, 800), keep_ratio=True)]
    padded = dict(data_preprocessor=dict(pad_size_divisor=32))
    assert config_image_shape(config_of(pipeline, **padded), model) == (3, 800, 1344)


def test_a_language_model_has_no_image():
    loader = dict(dataset=dict(type='mmscale.StandardLibrary', split='val', length=16))
    config = Config(dict(model=dict(type='mmscale.CausalLM'), val_dataloader=loader))
    assert config_input(config, nn.Identity()) == ((16,), 'the length of the texts')
    config = Config(dict(model=dict(type='mmscale.DMSModel', input_shape=(8,), model=dict())))
    assert config_image_shape(config, nn.Identity()) == (8,)
