"""Spaces that are built and run quickly."""

import copy
import runpy
import sys
from pathlib import Path

import pytest
import torch
from mmpretrain.structures import DataSample
from torch import nn

from mmscale.arch import SearchSpace
from mmscale.models import SuperNetClassifier

# Lets the tests of this folder import `general_spaces` and `whole_update`.
sys.path.insert(0, str(Path(__file__).parent))

import general_spaces


@pytest.fixture(scope='session')
def narrow_space(paper_config):
    """The paper's space with a sixth of its channels, odd widths and small images."""
    config = copy.deepcopy(paper_config)
    config['num_classes'] = 10
    config['stem']['channels'] = 5
    config['head']['channels'] = 24
    for stage, channels in zip(config['stages'], (3, 5, 7, 8, 11, 12, 17), strict=True):
        stage['channels'] = channels
    resolutions = ([20], [20, 23], [25, 28], [31, 33])
    for stage, resolution in zip(config['scaling_stages'], resolutions, strict=True):
        stage['resolution'] = resolution
    return SearchSpace(**config)


@pytest.fixture(scope='session')
def digit_space():
    path = Path(__file__).parents[2] / 'configs/_base_/search_spaces/digits.py'
    return SearchSpace(**runpy.run_path(str(path))['space'])


@pytest.fixture(scope='session')
def tiny_space():
    """Ten blocks at most, of everything that slices differently."""
    return SearchSpace(
        in_channels=1,
        num_classes=4,
        se=dict(),
        stem=dict(channels=3),
        stages=[
            dict(channels=3, stride=1, expand=1, depths=[1, 2], kernels=[3, 5]),
            dict(channels=5, stride=2, expand=2, depths=[1, 2, 3], kernels=[3, 5, 7]),
        ],
        head=dict(channels=8),
        scaling_stages=[
            dict(depth=[1], width=[1], resolution=[9]),
            dict(depth=[1.2, 1.6], width=[1.3, 1.7, 2.1], resolution=[9, 12]),
        ],
    )


@pytest.fixture
def make_classifier(tiny_space):
    """A function that makes a SuperNetClassifier of the tiny space from further settings."""

    def make(kernels='shared', **kwargs):
        torch.manual_seed(0)
        backbone = dict(type='mmscale.SuperNet', space=tiny_space, kernels=kernels)
        head = dict(type='mmpretrain.LinearClsHead', num_classes=4, in_channels=8, topk=(1,))
        neck = dict(type='mmpretrain.GlobalAveragePooling')
        kwargs = {'backbone': backbone, 'neck': neck, 'head': head, **kwargs}
        return SuperNetClassifier(**kwargs)

    return make


@pytest.fixture
def make_batch():
    """A function that makes a batch of random images and labels for a draw."""

    def make(draw, seed, count=4):
        generator = torch.Generator().manual_seed(seed)
        side = draw.arch.resolution
        labels = torch.randint(4, (count,), generator=generator)
        return dict(
            inputs=torch.randn(count, 1, side, side, generator=generator),
            data_samples=[DataSample().set_gt_label(int(label)) for label in labels],
        )

    return make


@pytest.fixture
def make_random(randomise):
    """A function that makes a classifier of random weights of 64 bits."""

    def make(*args, **kwargs):
        model = general_spaces.make_classifier(*args, **kwargs)
        randomise(model, weights=True)
        generator = torch.Generator().manual_seed(1)
        for module in model.head.modules():
            if isinstance(module, nn.Linear):
                module.weight.data.normal_(0, module.in_features**-0.5, generator=generator)
                module.bias.data.normal_(0, 1, generator=generator)
        return model.double().eval()

    return make
