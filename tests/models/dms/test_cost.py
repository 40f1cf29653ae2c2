"""Cost under masks against the counted cost of the physically pruned network."""

import copy

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope

from mmscale.cost import Cost, count, count_layers, count_module
from mmscale.models import ArchNet
from mmscale.models.dms import ChannelGroups, DepthGroup, arch_groups
from mmscale.models.dms.cost import MaskedCost
from mmscale.models.dms.find import channel_groups
from mmscale.models.dms.prune import apply_pruning, plan_pruning
from mmscale.registry import MODELS

VIT = dict(embed_dims=24, num_layers=3, num_heads=4, feedforward_channels=40)
SWIN = dict(embed_dims=24, depths=[1, 2, 2, 1], num_heads=[2, 4, 4, 4])
VIT_HEAD = dict(type='VisionTransformerClsHead', num_classes=7, in_channels=24)
# Backbone, width of its features, side of the images, head.
NETWORKS = {
    'mbconv with SE': (dict(type='mmscale.ArchNet', arch='scalenet-s0'), 1280, 32, None),
    'grouped, SE': (dict(type='mmscale.ArchNet', arch='regnety-400mf'), 440, 32, None),
    'bottleneck': (dict(type='mmscale.ArchNet', arch='resnet-50'), 2048, 32, None),
    'traced basic': (dict(type='ResNet', depth=18), 512, 32, None),
    'traced depthwise': (dict(type='MobileNetV2', widen_factor=0.5), 1280, 32, None),
    'traced grouped': (dict(type='RegNet', arch='regnetx_400mf'), 384, 32, None),
    'vision transformer': (
        dict(type='VisionTransformer', arch=VIT, img_size=32, patch_size=8),
        24,
        32,
        VIT_HEAD,
    ),
    'windowed attention': (
        dict(type='SwinTransformer', arch=SWIN, img_size=64, window_size=4, pad_small_map=True),
        192,
        64,
        None,
    ),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    """A classifier, its groups, its input and its cost under masks."""
    backbone, width, side, head = NETWORKS[request.param]
    config = dict(
        type='ImageClassifier',
        backbone=backbone,
        neck=dict(type='GlobalAveragePooling') if head is None else None,
        head=head or dict(type='LinearClsHead', num_classes=7, in_channels=width),
    )
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(config)
    inputs = [torch.zeros(1, 3, side, side)]
    groups = channel_groups(model, inputs)
    return model, groups, inputs, MaskedCost(model, groups, inputs)


def random_keep(groups, rng):
    keep, counts = {}, []
    for group in groups.all:
        if isinstance(group, DepthGroup):
            mask = rng.random(group.size) < 0.5
            keep[group.name] = np.flatnonzero(mask).tolist()
            counts += mask.astype(int).tolist()
        else:
            number = int(rng.integers(1, group.size + 1))
            keep[group.name] = rng.choice(group.size, number, replace=False).tolist()
            counts.append(number)
    return keep, counts


def test_equal_to_the_pruned_network(network):
    model, groups, inputs, cost = network
    assert cost.full == count_module(model, inputs=inputs, memory=False).cost
    rng = np.random.default_rng(0)
    for _ in range(2):
        keep, counts = random_keep(groups, rng)
        pruned = apply_pruning(copy.deepcopy(model), plan_pruning(model, groups, keep))
        counted = count_module(pruned, inputs=inputs, memory=False).cost
        assert cost.count(counts) == counted
        assert counted.flops < cost.full.flops / 2 and counted.params < cost.full.params


@pytest.mark.parametrize('kinds', [('heads',), ('qk_size',), ('v_size',), ('heads', 'qk_size')])
@pytest.mark.parametrize('name', ['ViT', 'Swin', 'LLaMA', 'GPT-NeoX', 'BERT', 'TinyViT'])
def test_attention_of_which_only_some_kinds_can_go(name, kinds, build_network):
    model, inputs = build_network(name)
    groups = channel_groups(model, inputs)
    groups = ChannelGroups(tuple(group for group in groups if group.kind in kinds))
    assert groups.widths
    keep = {group.name: range(max(1, group.size // 3)) for group in groups}
    pruned = apply_pruning(copy.deepcopy(model), plan_pruning(model, groups, keep))
    counted = count_module(pruned, inputs=inputs, memory=False).cost
    cost = MaskedCost(model, groups, inputs)
    assert cost.count([len(kept) for kept in keep.values()]) == counted != cost.full


def test_gradient_is_the_difference_of_one_element():
    """Of a depthwise width the cost is linear, but for SE's and its neighbours' products."""
    net = ArchNet('scalenet-s0')
    groups = arch_groups(net.arch)
    cost = MaskedCost(net, groups, [torch.zeros(1, 3, 64, 64)])
    rng = np.random.default_rng(1)
    _, counts = random_keep(groups, rng)
    values = torch.tensor(counts, dtype=torch.float64, requires_grad=True)
    for metric, key in enumerate(('flops', 'params', 'acts')):
        (slopes,) = torch.autograd.grad(cost(values)[metric], values)
        for number in rng.choice(len(counts), 12, replace=False):
            more, less = list(counts), list(counts)
            more[number] += 1
            less[number] -= 1
            # Cost is at most quadratic in one width: the central difference is exact.
            difference = getattr(cost.count(more), key) - getattr(cost.count(less), key)
            assert slopes[number].item() == pytest.approx(difference / 2)


def test_layers_add_up_to_the_module():
    net = ArchNet('scalenet-s0')
    layers = count_layers(net, (3, 64, 64))
    whole = count_module(net, (3, 64, 64), memory=False)
    total = sum(layers.values(), Cost())
    assert (total.flops, total.acts) == (whole.flops, whole.acts)
    assert layers['stem.conv'] == Cost(flops=32 * 32 * 27 * 32, acts=32 * 32 * 32)
    assert count(net.arch).flops > whole.flops
    with pytest.raises(ValueError, match='exactly one of input_shape and inputs'):
        count_layers(net)
