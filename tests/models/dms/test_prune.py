"""Groups and pruning of every kind of network: found, masked, pruned, counted, rebuilt."""

import copy
import json

import pytest
import torch
from torch import nn

from mmscale.arch import get_arch
from mmscale.cost import count_module
from mmscale.models import ArchNet, DifferentiableTopK
from mmscale.models.dms import (
    Masks,
    Pruning,
    apply_pruning,
    arch_groups,
    channel_groups,
    plan_pruning,
    pruned_arch,
    pruned_model,
    renumbered,
)
from mmscale.models.dms.cost import MaskedCost


def logits(model, inputs):
    output = model(*inputs)
    return getattr(output, 'logits', output)


def hard_gates(groups, keep):
    gates = {}
    for group in groups.all:
        gate = gates[group.key] = DifferentiableTopK(group.size, minimum=0)
        gate.hard_mask.zero_()
        gate.hard_mask[list(keep[group.name])] = 1
        gate.hard.fill_(True)
    return nn.ModuleDict(gates)


def test_pruned_is_hard_masked(network, random_half, tmp_path):
    """Outputs, cost and a rebuilt network, of half of everything at random."""
    name, model, inputs, (widths, elements, stages, blocks) = network
    before = {key: value.clone() for key, value in model.state_dict().items()}
    groups = channel_groups(model, inputs)
    assert (len(groups), groups.elements) == (widths, elements)
    assert (len(groups.depths), sum(depth.size for depth in groups.depths)) == (stages, blocks)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    whole = copy.deepcopy(model)
    keep = random_half(groups)
    pruning = plan_pruning(model, groups, keep)
    small = apply_pruning(copy.deepcopy(model), pruning)

    cost = MaskedCost(model, groups, inputs)
    assert cost.full == count_module(model, inputs=inputs, memory=False).cost
    counts = [len(keep[group.name]) for group in groups.widths]
    counts += [i in keep[depth.name] for depth in groups.depths for i in range(depth.size)]
    counted = count_module(small, inputs=inputs, memory=False).cost
    assert cost.count(counts) == counted
    assert counted.flops < 0.6 * cost.full.flops

    masks = Masks(model, groups, hard_gates(groups, keep))
    with torch.no_grad():
        masked, found, unmasked = (logits(net, inputs) for net in (model, small, whole))
    torch.testing.assert_close(found, masked, rtol=1e-4, atol=2e-6)
    assert (masked - unmasked).abs().max() > 1e-2
    masks.remove()
    with torch.no_grad():
        assert torch.equal(logits(model, inputs), unmasked)

    for net in (small, model):
        logits(net.train(), inputs).sum().backward()
    # Layers that no forward pass of the network uses (DeiT III has some) are the same.
    unused = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert all(
        (parameter.grad is None) == (name in unused)
        for name, parameter in small.named_parameters()
    )

    pruning.save(tmp_path / 'pruned.json')
    rebuilt = apply_pruning(whole, Pruning.from_json(tmp_path / 'pruned.json'))
    # mmpretrain's Swin V2 drops what it computes anew from any state that it loads.
    rebuilt.load_state_dict(small.state_dict(), strict='Swin V2' not in name)
    with torch.no_grad():
        assert torch.equal(logits(rebuilt.eval(), inputs), logits(small.eval(), inputs))


@pytest.mark.parametrize(
    'name',
    [
        *('EfficientNet-B0', 'RegNetY-200MF', 'ResNet-18', 'MobileNetV3-Small'),
        *('ResNeXt-50-32x4d', 'convs'),
    ],
)
def test_pruned_arch_net_is_the_net_of_an_arch(name, conv_arch, random_half, randomise):
    torch.manual_seed(0)
    arch = conv_arch if name == 'convs' else get_arch(name)
    net = randomise(ArchNet(arch)).eval()
    groups = arch_groups(arch)
    keep = random_half(groups)
    pruning = plan_pruning(net, groups, keep)
    small = apply_pruning(net, pruning)
    found = pruned_arch(arch, pruning)
    plain = ArchNet(found).eval()
    plain.load_state_dict(renumbered(small.state_dict(), arch, pruning))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(plain(x)[0], small(x)[0])
    assert len(found.blocks) == len(arch.blocks) - len(pruning.removed)


class Segmenter(nn.Module):
    """Uses the maps of an ArchNet in all ways: side by side, added, channel by channel, as is."""

    def __init__(self):
        super().__init__()
        self.net = ArchNet('ResNet-18', out_indices=(0, 1, 2, 3))
        self.each = nn.Conv2d(64, 64, 3, padding=1, groups=64)
        self.both = nn.Sequential(nn.Conv2d(192, 24, 1), nn.BatchNorm2d(24), nn.ReLU())
        self.same = nn.Conv2d(256, 256, 1)
        self.wide = nn.Conv2d(256, 24, 1)
        self.classes = nn.Conv2d(24, 5, 1)

    def forward(self, x):
        a, b, c, d = self.net(x)
        b, c = (nn.functional.interpolate(one, a.shape[2:]) for one in (b, c + self.same(c)))
        mixed = self.both(torch.cat([b, self.each(a)], dim=1)) + self.wide(c)
        return self.classes(mixed), d


def test_maps_of_an_arch_net_are_followed(random_half, randomise):
    torch.manual_seed(0)
    model, x = randomise(Segmenter()).eval(), [torch.randn(1, 3, 64, 64)]
    groups = channel_groups(model, x)
    # Of the network's 12 widths the last map's stays; the widths of `both` and `wide` are one.
    assert (len(groups), groups.elements) == (12, 2880 - 512 + 24)
    tied = {
        group.name: {(member.module, member.role) for member in group.members} for group in groups
    }
    assert {('each', 'through'), ('both.0', 'in')} <= tied['net.stem']
    assert {('both.0', 'in')} <= tied['net.stages.1.0.project']
    assert {('same', 'in'), ('same', 'out'), ('wide', 'in')} <= tied['net.stages.2.0.project']
    places = [
        (member.module, side, channel)
        for _, member in groups.members
        for side in (('in', 'out') if member.role == 'through' else (member.role,))
        for channel in member.indices.flat
    ]
    assert len(places) == len(set(places))
    keep = random_half(groups)
    small = apply_pruning(copy.deepcopy(model), plan_pruning(model, groups, keep))
    counts = [len(keep[group.name]) for group in groups.widths]
    counts += [i in keep[depth.name] for depth in groups.depths for i in range(depth.size)]
    counted = count_module(small, inputs=x, memory=False).cost
    assert MaskedCost(model, groups, x).count(counts) == counted
    Masks(model, groups, hard_gates(groups, keep))
    with torch.no_grad():
        for one, other in zip(small(*x), model(*x), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert small.both[0].weight.shape[:2] == (12, 96)


def test_blocks_alone(random_half):
    arch = get_arch('MobileNetV2')
    groups = arch_groups(arch)
    keep = {depth.name: [] for depth in groups.depths}
    pruning = plan_pruning(ArchNet(arch), groups, keep)
    found = pruned_arch(arch, pruning)
    assert len(pruning.removed) == 10
    assert found.depths == (1,) * 7
    assert found.widths == arch.widths


def test_pruned_model_builds_from_a_config(random_half):
    backbone = dict(type='mmpretrain.ResNet', depth=18, base_channels=8, stem_channels=8)
    config = dict(
        type='mmpretrain.ImageClassifier',
        backbone=backbone,
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=dict(type='mmpretrain.LinearClsHead', num_classes=4, in_channels=64),
    )
    x = [torch.randn(2, 3, 32, 32)]
    from mmengine.registry import MODELS

    model = MODELS.build(copy.deepcopy(config))
    groups = channel_groups(model, x)
    pruning = plan_pruning(model, groups, random_half(groups))
    small = apply_pruning(model, pruning)
    described = json.loads(json.dumps(pruning.to_json()))
    wrapper = dict(type='mmscale.PrunedModel', model=config, pruned=described)
    built = MODELS.build(wrapper | dict(data_preprocessor=dict(mean=[0, 0, 0], std=[2, 2, 2])))
    assert built.data_preprocessor.std.flatten().tolist() == [2, 2, 2]
    built.init_weights()
    built.load_state_dict(small.state_dict())
    with torch.no_grad():
        assert torch.equal(built.eval()(*x), small.eval()(*x))


def test_a_pruning_of_another_network():
    arch = get_arch('ResNet-18')
    groups = arch_groups(arch)
    pruning = plan_pruning(ArchNet(arch), groups, {'stages.3.1.spatial': [3, 500]})
    config = dict(type='mmscale.ArchNet', arch='MobileNetV2')
    with pytest.raises(ValueError, match='ArchNet does not fit its pruning'):
        pruned_model(config, pruning.to_json())
    with pytest.raises(ValueError, match='pruned: missing key keep, slices'):
        pruned_model(config, {'schema': 2})
    with pytest.raises(ValueError, match='pruned: missing key slices, removed, counts'):
        pruned_model(config, {'schema': 1, 'keep': {}})


def test_bad_choice():
    for keep, message in (
        ({'nothing': [0]}, 'there is no group nothing'),
        ({'stem': [64]}, r'stem has elements 0..63, not \[64\]'),
        ({'stem': []}, 'nothing of stem would stay'),
    ):
        arch = get_arch('ResNet-18')
        with pytest.raises(ValueError, match=message):
            plan_pruning(ArchNet(arch), arch_groups(arch), keep)
