"""Heads of classifiers whose widths differ between the networks of a space."""

import copy

import pytest
import torch
from general_spaces import SPACES, archs_of, draws_of, images_of, make_classifier
from mmengine.optim import OptimWrapper
from torch import nn
from whole_update import make_optimizer

from mmscale.errors import UsageError
from mmscale.models.dms.find import static_model


def test_heads_are_as_wide_as_what_they_see():
    model = make_classifier(SPACES['fused_mbconv'])
    space = SPACES['fused_mbconv']
    assert [tuple(p.shape) for p in model.head.parameters()] == [(12, 18), (12,), (4, 12), (4,)]
    for arch in archs_of(space, 4):
        alone = model.extract(arch)
        width, hidden = arch.head.channels, arch.head.hidden_channels
        shapes = [tuple(p.shape) for p in alone.head.parameters()]
        assert shapes == [(hidden, width), (hidden,), (4, hidden), (4,)]
    one = make_classifier(SPACES['fused_mbconv'], sides=['right'])
    assert [tuple(p.shape) for p in one.head.parameters()] == [(7, 10), (7,), (4, 7), (4,)]
    # Widths of the last network stage, or of the one whose map comes last.
    assert make_classifier(SPACES['bottleneck']).head.in_channels == 12 + 16
    assert make_classifier(SPACES['bottleneck'], out_indices=0).head.in_channels == 8 + 16


def test_heads_that_fit_all_subnets_are_shared_whole(make_random):
    model = make_random(SPACES['mbconv'])
    assert not model.shares_head
    arch = SPACES['mbconv'].smallest()
    assert torch.equal(model.extract(arch, 'right').head.fc.weight, model.head.fc.weight)


def test_a_head_of_any_kind_keeps_its_settings(make_batch):
    head = dict(
        type='StackedLinearClsHead', num_classes=4, norm_cfg=dict(type='BN1d'), dropout_rate=0.5,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1), cal_acc=True,
    )  # fmt: skip
    model = make_classifier(SPACES['fused_mbconv'], head=head).train()
    draw = draws_of(SPACES['fused_mbconv'], 1)[0]
    model.set_draw(draw, 0)
    wrapper = OptimWrapper(make_optimizer('SGD', model.parameters()))
    before = model.head.layers[0].norm.running_mean.clone()
    assert 'accuracy_top-1' in model.train_step(make_batch(draw, 0), wrapper)
    hidden = draw.arch.head.hidden_channels
    # Statistics of what was used alone: on the left the first ones.
    part = slice(0, hidden) if draw.side == 'left' else slice(-hidden, None)
    changed = model.head.layers[0].norm.running_mean != before
    assert changed[part].all() and int(changed.sum()) == hidden
    model.eval()
    images = make_batch(draw, 1)['inputs']
    alone = model.extract(draw.arch, draw.side)
    assert not alone.head.training
    expected = alone.eval()(images)
    torch.testing.assert_close(model(images), expected)
    features = model.extract_feat(images, 'pre_logits')
    torch.testing.assert_close(features, alone.extract_feat(images, 'pre_logits'))
    # A mode set by hand counts.
    model.train().head.layers[0].norm.eval()
    before = copy.deepcopy(model.head.state_dict())
    model.set_draw(draw, 2)
    model.backward_step(make_batch(draw, 2), wrapper)
    for key, tensor in model.head.state_dict().items():
        assert torch.equal(tensor, before[key]), key


def test_copies_and_conversions_take_the_head_along(make_random):
    model = make_random(SPACES['bottleneck'])
    arch = SPACES['bottleneck'].smallest()
    model.backbone.set_arch(arch)
    images = images_of(arch)
    with torch.no_grad():
        expected = model(images)
        copied = copy.deepcopy(model)
        for parameter in model.parameters():
            parameter.zero_()
        assert torch.equal(copied(images), expected)
        assert not torch.equal(model(images), expected)
        assert (copied.float()(images.float()) - expected).abs().max() < 1e-3
    assert copied.backbone.owns(copied.head.fc.weight)
    assert not copied.backbone.owns(model.head.fc.weight)


def test_the_static_model_has_its_own_head(make_random):
    model = make_random(SPACES['bottleneck'])
    largest = SPACES['bottleneck'].largest()
    model.backbone.set_arch(largest)
    with torch.no_grad():
        expected = model(images_of(largest))
        static = static_model(model)
        assert (static(images_of(largest)) - expected).abs().max() < 1e-10
    assert static.head.in_channels == largest.widths[-1]


def test_heads_of_other_widths_are_refused():
    linear = dict(type='LinearClsHead', num_classes=4)
    for name, head, message in [
        ('bottleneck', dict(linear, in_channels=16), r'head.in_channels=16: leave it out.* 28'),
        ('fused_mbconv', dict(type='StackedLinearClsHead', num_classes=4, mid_channels=[7]),
         r'head.mid_channels=\[7\]: leave it out.*\[12\]'),
        ('bottleneck', nn.Linear(28, 4), 'head=Linear must be a config'),
    ]:  # fmt: skip
        with pytest.raises(UsageError, match=message) as error:
            make_classifier(SPACES[name], head=head)
        assert '\n' not in str(error.value)
    # What is allocated may be said.
    assert make_classifier(SPACES['bottleneck'], head=dict(linear, in_channels=28)).shares_head
