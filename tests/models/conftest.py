"""Spaces that are built and run quickly, and statistics that no network would keep by itself."""

import copy
import runpy
from pathlib import Path

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from mmscale.arch import SearchSpace


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


@pytest.fixture
def randomise():
    """A function that gives every norm layer random statistics and affine parameters."""

    def apply(model, seed=0):
        generator = torch.Generator().manual_seed(seed)
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                for tensor in (module.weight, module.running_var):
                    tensor.data.uniform_(0.5, 1.5, generator=generator)
                for tensor in (module.bias, module.running_mean):
                    tensor.data.normal_(0, 0.3, generator=generator)
        return model

    return apply
