"""What groups say, how they are found, and the errors on the way."""

import warnings
from collections import OrderedDict

import pytest
import torch
import torchvision
from mmengine.registry import MODELS
from torch import nn

from mmscale.arch import Arch, Block, Head, Stem
from mmscale.models import ArchNet, SuperNet
from mmscale.models.dms import (
    ChannelGroup,
    ChannelGroups,
    DepthGroup,
    Masks,
    Member,
    apply_pruning,
    arch_groups,
    channel_groups,
    declare_groups,
    plan_pruning,
    static_model,
)
from mmscale.models.dms.groups import runs
from mmscale.models.dms.traced import traced_groups

TRANSFORMERS = (
    *('ViT', 'DeiT', 'Swin', 'BEiT', 'TinyViT', 'LLaMA', 'Mistral', 'Qwen2', 'Qwen3'),
    *('GPT-2', 'GPT-NeoX', 'OPT'),
)
IMAGE = [torch.zeros(1, 3, 32, 32)]


class Pooled(nn.Module):
    """An ArchNet with a classifier that it knows nothing of."""

    def __init__(self, name):
        super().__init__()
        self.net = ArchNet(name)
        self.fc = nn.Linear(self.net.arch.feature_channels, 3)

    def forward(self, x):
        return self.fc(self.net(x)[0].mean((2, 3)))


@pytest.mark.parametrize('name', ['MobileNetV2', 'RegNetY-200MF', 'ResNet-18', 'convs'])
def test_traced_groups_are_the_declared_ones(name, conv_arch):
    """One forward pass and the Arch, two independent ways to the groups of one network."""
    model = Pooled(conv_arch if name == 'convs' else name)
    arch = model.net.arch
    inputs = Member('fc', 'in', runs(arch.feature_channels))
    declared = arch_groups(arch, {len(arch.stages): [inputs]}, 'net.')
    traced = traced_groups(model, IMAGE)
    assert {(group.size, frozenset(group.layers)) for group in traced} == {
        (group.size, frozenset(group.layers)) for group in declared
    }
    for depth in declared.depths:
        found = [other for other in traced.depths if set(other.blocks) >= set(depth.blocks)]
        assert len(found) == 1


def test_groups_explain_themselves():
    block = Block('mbconv', 3, 1, 8, 16, 8, 16, residual='identity')
    groups = arch_groups(Arch(32, Stem(8), ((block,) * 2,), Head()))
    title, *lines = str(groups).splitlines()
    assert title == '3 groups of 40 elements, 1 depths of 1 blocks'
    for group, line in zip(groups.all, lines, strict=True):
        assert line.startswith(f'  {group.name}: {group.size} ')
    for group, line in zip(groups.widths, lines, strict=False):
        assert all(f'{member.module} ({member.role})' in line for member in group.members)
    assert lines[-1].endswith(': stages.0.1')


@pytest.mark.parametrize(
    ('network', 'kinds'),
    [
        *((name, {'embedding', 'heads', 'qk_size', 'v_size', 'width'}) for name in TRANSFORMERS),
        *((name, {'embedding', 'heads', 'v_size', 'width'}) for name in ('EVA-02', 'Swin V2')),
        ('BEiT with one table', {'embedding', 'qk_size', 'v_size', 'width'}),
        ('MViT', {'embedding', 'heads', 'head_size', 'width'}),
    ],
    indirect=['network'],
)
def test_transformers_declare_heads_their_sizes_and_the_embedding(network, kinds):
    _, model, inputs, _ = network
    groups = channel_groups(model, inputs)
    assert {group.kind for group in groups} == kinds
    assert all(len(ends) == 2 for depth in groups.depths for ends in depth.branch_ends)


def test_groups_are_checked():
    with pytest.raises(ValueError, match="role='inside' is not one of out, in"):
        Member('layer', 'inside', runs(3))
    with pytest.raises(ValueError, match='each channel once'):
        Member('layer', 'in', [[1], [1]])
    with pytest.raises(ValueError, match='has indices for 3 elements, the group has 4'):
        ChannelGroup('group', 4, (Member('layer', 'in', runs(3)),))
    with pytest.raises(ValueError, match="kind='depth'"):
        ChannelGroup('group', 3, (), kind='depth')
    with pytest.raises(ValueError, match='2 blocks and branch ends of 1'):
        DepthGroup('stage', ('a', 'b'), (('c',),))
    group = ChannelGroup('group', 3, ())
    with pytest.raises(ValueError, match='the name group comes more than once'):
        ChannelGroups((group, group))
    member = Member('layer', 'in', runs(3))
    with pytest.raises(ValueError, match='read-only'):
        member.indices[0] = 1


def test_frozen_stages_hide_nothing():
    config = dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type='mmpretrain.ResNet', depth=18, base_channels=8, stem_channels=8),
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=dict(type='mmpretrain.LinearClsHead', num_classes=4, in_channels=64),
    )
    free = channel_groups(MODELS.build(config), IMAGE)
    config['backbone']['frozen_stages'] = 2
    frozen = MODELS.build(config)
    assert str(channel_groups(frozen, IMAGE)) == str(free)
    assert not frozen.backbone.layer1[0].conv1.weight.requires_grad
    assert [depth.size for depth in free.depths] == [2, 1, 1, 1]


def test_what_unknown_layers_use_keeps_its_width():
    arch = dict(type='mmscale.ArchNet', arch='ResNet-18')
    alone = channel_groups(MODELS.build(arch), IMAGE)
    inside = nn.Sequential(OrderedDict(net=MODELS.build(arch)))
    groups = channel_groups(inside, IMAGE)
    assert len(alone) == len(groups) + 1
    assert 'net.stages.3.0.project' not in groups.by_name


def test_channels_that_a_convolutions_groups_share_are_one_element():
    net = nn.Sequential(
        nn.Conv2d(3, 12, 1), nn.Conv2d(12, 8, 3, groups=4), nn.Conv2d(8, 6, 1, groups=2), nn.ReLU()
    )
    groups = channel_groups(net, IMAGE)
    assert [(group.name, group.size) for group in groups] == [('0', 3), ('1', 2)]
    assert groups[0].members[0].indices.tolist() == [[i, i + 3, i + 6, i + 9] for i in range(3)]
    keep = {'0': [0, 2], '1': [1]}
    small = apply_pruning(net, plan_pruning(net, groups, keep))
    assert [layer.weight.shape[:2] for layer in small[:3]] == [(8, 3), (4, 2), (6, 2)]
    assert small(torch.randn(1, 3, 8, 8)).shape == (1, 6, 6, 6)


def test_gated_linear_units_and_concatenations():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 8)
            self.b = nn.Linear(4, 5)
            self.c = nn.Linear(3, 6)
            self.d = nn.Linear(11, 2)

        def forward(self, x):
            left, right = self.a(x).chunk(2, dim=1)
            return self.d(torch.cat([self.b(left * right.sigmoid()), self.c(x)], dim=1))

    net = Net()
    groups = channel_groups(net, [torch.randn(2, 3)])
    assert [(group.name, group.size) for group in groups] == [('a', 4), ('b', 5), ('c', 6)]
    small = apply_pruning(net, plan_pruning(net, groups, {'a': [1, 2], 'b': [4], 'c': [0, 1]}))
    assert small(torch.randn(2, 3)).shape == (2, 2)
    assert small.d.weight.shape == (2, 3)


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.aux = nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.second(self.first(x))


def test_a_model_that_cannot_be_traced_can_be_declared():
    net = nn.Sequential(Untraceable())
    x = [torch.randn(2, 3)]
    with pytest.raises(ValueError, match=r'Sequential cannot be traced.*declare_groups\(network'):
        channel_groups(net, x)

    def grouper(model, prefix, consumers):
        assert consumers == ()
        members = (
            Member(f'{prefix}first', 'out', runs(4)),
            Member(f'{prefix}second', 'in', runs(4)),
        )
        return ChannelGroups((ChannelGroup(f'{prefix}first', 4, members),))

    declare_groups(Untraceable, grouper)
    assert [group.name for group in channel_groups(net, x)] == ['0.first']


def test_a_layer_outside_the_forward_pass_is_no_silent_mistake():
    net = torchvision.models.googlenet(num_classes=3, init_weights=False)
    with pytest.raises(ValueError, match=r'aux1.conv.conv, .* took no part in the forward pass'):
        channel_groups(net, [torch.zeros(1, 3, 64, 64)])


def test_super_net(tiny_space):
    torch.manual_seed(0)
    net = SuperNet(tiny_space).eval()
    groups = channel_groups(net, [torch.zeros(1, 1, 12, 12)])
    x = torch.randn(1, 1, 12, 12)
    with pytest.raises(ValueError, match='a SuperNet cannot be masked'):
        Masks(net, groups, {})
    largest = static_model(net)
    assert isinstance(largest, ArchNet)
    assert not isinstance(largest, SuperNet)
    assert str(groups) == str(channel_groups(largest, [x]))
    with warnings.catch_warnings(), torch.no_grad():
        torch.testing.assert_close(largest(x)[0], net(x)[0])


def test_layers_that_functions_use_alone_are_said_to_be_the_reason_why_nothing_can_go():
    class ByFunction(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

        def forward(self, x):
            x = nn.functional.conv2d(x, self.one.weight, self.one.bias).relu()
            return nn.functional.conv2d(x, self.other.weight, self.other.bias)

    with pytest.warns(UserWarning, match='ByFunction: nothing can go') as caught:
        groups = channel_groups(ByFunction(), (torch.zeros(1, 3, 16, 16),))
    assert not groups.all
    assert len(caught) == 1
    assert 'given to functions, which is not followed: one, other;' in str(caught[0].message)
