"""ArchClassifier: a head as wide as its Arch, whatever that is."""

import pytest
import torch
from mmengine.registry import DefaultScope

from mmscale.arch import SearchSpace
from mmscale.cost import count
from mmscale.models import ArchClassifier
from mmscale.registry import MODELS

SPACE = SearchSpace(
    in_channels=1,
    num_classes=5,
    act='relu',
    stem=dict(channels=8),
    stages=[dict(channels=[8, 16], depths=1, kernels=3)],
    head=dict(channels=0),
    resolution=16,
)
HIDDEN = SearchSpace(
    in_channels=1,
    num_classes=5,
    act='silu',
    stem=dict(channels=8),
    stages=[dict(channels=8, depths=1, kernels=3)],
    head=dict(channels=12, hidden_channels=[20, 24]),
    resolution=16,
)
LINEAR = dict(type='LinearClsHead', num_classes=5)
STACKED = dict(type='StackedLinearClsHead', num_classes=5, act_cfg=dict(type='SiLU'))


def build(arch, head):
    config = dict(
        type='mmscale.ArchClassifier',
        backbone=dict(type='mmscale.ArchNet', arch=arch),
        neck=dict(type='GlobalAveragePooling'),
        head=head,
    )
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(config)


@pytest.mark.parametrize(('space', 'head'), [(SPACE, LINEAR), (HIDDEN, STACKED)])
def test_the_head_follows_the_arch(space, head):
    for arch in (space.smallest(), space.largest()):
        model = build(arch, head).eval()
        assert isinstance(model, ArchClassifier)
        assert model(torch.zeros(2, 1, 16, 16)).shape == (2, 5)
        params = sum(parameter.numel() for parameter in model.parameters())
        assert params == count(arch).params


def test_widths_that_fit_may_be_said():
    assert build(SPACE.largest(), dict(LINEAR, in_channels=16)).head.fc.in_features == 16


@pytest.mark.parametrize(
    ('arch', 'head', 'message'),
    [
        (
            SPACE.smallest(),
            dict(LINEAR, in_channels=16),
            'model.head.in_channels=16: .* backbone: 8',
        ),
        (
            HIDDEN.largest(),
            dict(STACKED, mid_channels=[20]),
            r'model.head.mid_channels=\[20\]: .* backbone: \[24\]',
        ),
        (HIDDEN.largest(), LINEAR, "model.head.type='LinearClsHead': .* has 24 channels"),
        (SPACE.largest(), STACKED, "model.head.type='StackedLinearClsHead': .* has 0 channels"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(arch, head, message):
    with pytest.raises(ValueError, match=message) as error:
        build(arch, head)
    assert '\n' not in str(error.value)
