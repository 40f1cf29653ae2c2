"""Masks on a network: where they act, how often they are computed, what is collected."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmscale.arch import get_arch
from mmscale.models import ArchNet, DifferentiableTopK
from mmscale.models.dms import ChannelGroup, ChannelGroups, DepthGroup, Masks, Member, arch_groups
from mmscale.models.dms.folding import fed_alone
from mmscale.models.dms.groups import runs
from mmscale.models.dms.layers import masked_norm


class TwoLayers(nn.Module):
    """Written so that a mask can be applied by hand: a residual MLP."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.second = nn.Linear(4, 3)

    def forward(self, x, mask=1, block=1):
        return x + block * self.second(torch.relu(self.first(x)) * mask)


def groups_of_two_layers():
    width = ChannelGroup(
        'first',
        4,
        (Member('first', 'out', runs(4)), Member('second', 'in', runs(4))),
    )
    return ChannelGroups((width,), (DepthGroup('depth', ('block',), (('second',),)),))


@pytest.fixture
def masked():
    torch.manual_seed(0)
    model = TwoLayers()
    gates = nn.ModuleDict({'first': DifferentiableTopK(4), 'depth': DifferentiableTopK(1, 4)})
    for gate in gates.values():
        gate.pruning_ratio.data.fill_(0.4)
    return model, gates, Masks(model, groups_of_two_layers(), gates)


@pytest.mark.parametrize('images', [1, 5])  # what a layer maps is smaller than it, or larger
def test_masks_multiply_inputs_of_consumers_and_ends_of_branches(masked, images):
    model, gates, masks = masked
    x = torch.randn(images, 3)
    found = model(x)
    found.pow(2).sum().backward()
    plain = copy.deepcopy(model)
    for module in plain.modules():
        module._forward_pre_hooks.clear()
        module._forward_hooks.clear()
    mask, block = gates['first'](), gates['depth']()
    mask.retain_grad()
    block.retain_grad()
    expected = plain(x, mask, block)
    torch.testing.assert_close(found, expected)
    plain.zero_grad()
    ratio = gates['first'].pruning_ratio.grad.clone()
    gates.zero_grad()
    expected.pow(2).sum().backward()
    torch.testing.assert_close(ratio, gates['first'].pruning_ratio.grad)
    for parameter, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad)
    collected = masks.collect()
    for key, own in (('first', mask), ('depth', block)):
        torch.testing.assert_close(collected[key][0], own.detach())
        torch.testing.assert_close(collected[key][1], own.grad)
    assert not masks.collect()


def test_gradients_accumulate(masked):
    model, _, masks = masked
    x = torch.randn(6, 3)
    model(x).sum().backward()
    whole = masks.collect()
    model(x[:2]).sum().backward()
    with torch.no_grad():
        model(x)
    model(x)  # has no backward pass
    model(x[2:]).sum().backward()
    parts = masks.collect()
    for key, (_, gradient) in whole.items():
        torch.testing.assert_close(parts[key][1], gradient)


def test_state_copies_and_removal(masked):
    model, gates, masks = masked
    x = torch.randn(2, 3)
    before = model(x)
    assert set(model.state_dict()) == {
        'first.weight',
        'first.bias',
        'second.weight',
        'second.bias',
    }
    holder = nn.Module()
    holder.model, holder.gates, holder.masks = model, gates, masks
    other = copy.deepcopy(holder)
    assert torch.equal(other.model(x), before)
    other.gates['first'].pruning_ratio.data.fill_(0.75)
    assert not torch.equal(other.model(x), before)
    assert torch.equal(model(x), before)
    masks.hard = True
    assert not model(x).allclose(before)
    masks.remove()
    torch.testing.assert_close(model(x), x + model.second(model.first(x).relu()))


def test_an_error_on_the_way_leaves_no_masked_weight(masked):
    model, _, _ = masked
    with pytest.raises(RuntimeError):
        model.second(torch.zeros(2, 7))
    assert 'weight' not in model.second.__dict__
    assert isinstance(model.second.weight, nn.Parameter)


def test_gate_of_another_size(masked):
    model = TwoLayers()
    with pytest.raises(ValueError, match='gate first: n=5, but its group has 4'):
        Masks(model, groups_of_two_layers(), {'first': DifferentiableTopK(5)})


def test_activation_checkpoints(masked):
    model, gates, masks = masked
    x = torch.randn(5, 3)
    model(x).pow(2).sum().backward()
    whole = masks.collect()

    class Checkpointed(TwoLayers):
        def forward(self, x):
            first = checkpoint(lambda x: self.first(x).relu(), x, use_reentrant=False)
            return x + checkpoint(self.second, first, use_reentrant=False)

    other = Checkpointed()
    other.load_state_dict(model.state_dict())
    masks = Masks(other, groups_of_two_layers(), gates)
    other(x).pow(2).sum().backward()
    for key, (_, gradient) in masks.collect().items():
        torch.testing.assert_close(gradient, whole[key][1])
    for parameter, own in zip(other.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, own.grad)


def test_norms_under_masks_in_half_precision():
    norm = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 2))
    norm[0].weight.data.uniform_(0.5, 1.5)
    members = (Member('0', 'norm', runs(6)), Member('1', 'in', runs(6)))
    groups = ChannelGroups((ChannelGroup('stream', 6, members, 'embedding'),))
    gate = DifferentiableTopK(6)
    gate.pruning_ratio.data.fill_(0.5)
    Masks(norm, groups, {'stream': gate})
    x = 100 + torch.randn(3, 6)
    mask = gate().detach()
    share = mask / mask.sum()
    centred = x - (x * share).sum(1, keepdim=True)
    scaled = centred / ((centred**2 * share).sum(1, keepdim=True) + 1e-5).sqrt()
    scaled = (scaled * norm[0].weight + norm[0].bias) * mask
    expected = scaled @ norm[1].weight.T + norm[1].bias
    torch.testing.assert_close(norm(x), expected)
    with torch.autocast('cpu', torch.bfloat16):
        found = norm(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize('name', ['RegNetY-200MF', 'MobileNetV2', 'ResNet-18'])
def test_every_gate_of_an_arch_net_learns(name):
    torch.manual_seed(0)
    arch = get_arch(name)
    net = ArchNet(arch)
    groups = arch_groups(arch)
    gates = nn.ModuleDict(
        {group.key: DifferentiableTopK(group.size, minimum=0) for group in groups.all}
    )
    for gate in gates.values():
        gate.pruning_ratio.data.fill_(0.2)
    masks = Masks(net, groups, gates)
    net(torch.randn(2, 3, 64, 64))[0].pow(2).sum().backward()
    collected = masks.collect()
    # What leaves the network has no consumer here.
    assert set(gates) - set(collected) <= {groups.widths[-1].key, 'stages/6/0/project'}
    for key, (_, gradient) in collected.items():
        assert gradient.abs().sum() > 0, key
        assert gates[key].pruning_ratio.grad != 0, key


@pytest.mark.parametrize('side', [2, 9])  # what a layer maps is smaller than it, or larger
@pytest.mark.parametrize('kind', ['plain', 'grouped', 'transposed', 'linear'])
def test_inputs_are_masked_alike_on_both_sides(kind, side):
    torch.manual_seed(0)
    layers = {
        'plain': nn.Conv2d(6, 8, 3, padding=1),
        'grouped': nn.Conv2d(6, 8, 5, padding=2, groups=2),
        'transposed': nn.ConvTranspose2d(6, 8, 3),
        'linear': nn.Linear(6, 8),
    }
    layer = layers[kind].double()
    x = torch.randn((side, 6) if kind == 'linear' else (1, 6, side, side), dtype=torch.float64)
    x.requires_grad_()
    model = nn.Sequential(nn.Identity(), layer)
    group = ChannelGroup('width', 6, (Member('1', 'in', runs(6)),))
    depth = DepthGroup('depth', ('1',), (('1',),))
    gates = nn.ModuleDict({'width': DifferentiableTopK(6), 'depth': DifferentiableTopK(1, 4)})
    for gate in gates.double().values():
        gate.pruning_ratio.data.fill_(0.4)
    ratios = [gate.pruning_ratio for gate in gates.values()]
    leaves = [x, *layer.parameters(), *ratios]
    mask, block = gates['width'](), gates['depth']()
    shaped = mask.view([-1] + [1] * (x.dim() - 2))
    expected = layer(x * shaped) * block
    Masks(model, ChannelGroups((group,), (depth,)), gates)
    found = model(x)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(y.pow(2).sum(), leaves) for y in (found, expected)]
    for own, other in zip(*gradients, strict=True):
        torch.testing.assert_close(own, other)


class Normed(nn.Module):
    """Two norms that feed linear layers; `also` uses what the first gives."""

    def __init__(self, also):
        super().__init__()
        self.first, self.second = nn.LayerNorm(6), nn.RMSNorm(6, eps=1e-5)
        self.query, self.key, self.value = (nn.Linear(6, 6) for _ in range(3))
        self.also = also

    def forward(self, x):
        normed = self.first(x)
        x = x + self.query(normed) * self.key(normed) + self.also(normed, x)
        return x + self.value(self.second(x))


def streams_of_normed():
    members = [Member(name, 'norm', runs(6)) for name in ('first', 'second')]
    members += [Member(name, 'in', runs(6)) for name in ('query', 'key', 'value')]
    return ChannelGroups((ChannelGroup('stream', 6, tuple(members), 'embedding'),))


ALSO = {
    'no one': (lambda normed, x: normed.shape[0], {'first', 'second'}),
    'a sum': (lambda normed, x: normed, {'second'}),
    'a view': (lambda normed, x: normed[:, :1], {'second'}),
    'one of a list': (lambda normed, x: torch.cat([x[:, :3], normed[:, 3:]], 1), {'second'}),
}


@pytest.mark.parametrize('also', ALSO)
def test_norms_take_over_masks_of_what_they_alone_feed(also):
    torch.manual_seed(0)
    use, expected = ALSO[also]
    model = Normed(use).double()
    for parameter in model.parameters():
        parameter.data.uniform_(-1, 1)
    x = torch.randn(3, 6, dtype=torch.float64)
    layers = ('query', 'key', 'value')
    fed = fed_alone(model, [x], ('first', 'second'), layers)
    assert fed == {
        name: found
        for name, found in (('first', ('key', 'query')), ('second', ('value',)))
        if name in expected
    }
    results = []
    for inputs in (None, [x]):
        twin = copy.deepcopy(model)
        gates = nn.ModuleDict({'stream': DifferentiableTopK(6)}).double()
        gates['stream'].pruning_ratio.data.fill_(0.5)
        masks = Masks(twin, streams_of_normed(), gates, inputs)
        result = twin(x)
        result.pow(2).sum().backward()
        gradients = [parameter.grad for parameter in twin.parameters()]
        results.append([result, *gradients, *masks.collect()['stream']])
    for own, other in zip(*results, strict=True):
        torch.testing.assert_close(own, other)
    masks.remove()
    torch.testing.assert_close(twin(x), model(x))


def test_compiled_networks_are_masked_alike():
    torch.manual_seed(0)
    model = Normed(ALSO['a sum'][0])
    gates = nn.ModuleDict({'stream': DifferentiableTopK(6)})
    gates['stream'].pruning_ratio.data.fill_(0.5)
    x = torch.randn(3, 6)
    masks = Masks(model, streams_of_normed(), gates, [x])
    results = []
    for run in (model, torch.compile(model, backend='eager')):
        model.zero_grad()
        result = run(x)
        result.pow(2).sum().backward()
        results.append([result, *(p.grad for p in model.parameters()), *masks.collect()['stream']])
    for own, other in zip(*results, strict=True):
        torch.testing.assert_close(own, other)


def test_a_layer_with_another_source_keeps_its_own_mask():
    class Shared(Normed):
        def forward(self, x):
            return self.query(self.first(x)) + self.query(x) + self.value(self.second(x))

    model = Shared(None)
    names = ('query', 'value')
    assert fed_alone(model, [torch.randn(2, 6)], ('first', 'second'), names) == {
        'second': ('value',)
    }


def test_what_leaves_the_network_may_be_used_by_anyone():
    class Two(Normed):
        def forward(self, x):
            normed = self.second(x)
            return [self.value(normed)] if self.also is None else [normed, self.value(normed)]

    for also, expected in ((None, {'second': ('value',)}), (True, {})):
        assert fed_alone(Two(also), [torch.randn(2, 6)], ('second',), ('value',)) == expected


@pytest.mark.parametrize('name', ['LayerNorm', 'RMSNorm', 'plain'])
def test_norms_under_masks_have_the_gradients_of_their_formula(name):
    torch.manual_seed(0)
    layers = {
        'LayerNorm': nn.LayerNorm(6),
        'RMSNorm': nn.RMSNorm(6, eps=1e-5),
        'plain': nn.LayerNorm(6, elementwise_affine=False),
    }
    layer = layers[name].double()
    for parameter in layer.parameters():
        parameter.data.uniform_(0.5, 1.5)
    x = (3 + torch.randn(2, 4, 6, dtype=torch.float64)).requires_grad_()
    mask = torch.tensor([0.0, 1, 0.2, 0.9, 0.5, 0.01], dtype=torch.float64, requires_grad=True)
    share = mask / mask.sum()
    expected = x if name == 'RMSNorm' else x - (x * share).sum(-1, keepdim=True)
    expected = expected / ((expected**2 * share).sum(-1, keepdim=True) + 1e-5).sqrt()
    for parameter, work in zip(layer.parameters(), (torch.mul, torch.add), strict=False):
        expected = work(expected, parameter)
    found = masked_norm(layer, x, mask)
    torch.testing.assert_close(found, expected)
    inputs, weights = (x, mask, *layer.parameters()), torch.randn_like(x)
    gradients = [torch.autograd.grad(y, inputs, weights) for y in (found, expected)]
    for own, other in zip(*gradients, strict=True):
        torch.testing.assert_close(own, other)


def test_norms_run_their_own_code_again_without_masks():
    norm = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 2))
    members = (Member('0', 'norm', runs(6)), Member('1', 'in', runs(6)))
    gate = DifferentiableTopK(6)
    gate.pruning_ratio.data.fill_(0.5)
    groups = ChannelGroups((ChannelGroup('stream', 6, members, 'embedding'),))
    x = torch.randn(3, 6)
    expected = norm(x)
    masks = Masks(norm, groups, {'stream': gate})
    assert not norm(x).allclose(expected)
    other, _ = copy.deepcopy((norm, masks))
    torch.nn.init.zeros_(norm[0].weight)
    assert not other(x).allclose(norm(x))  # a copy's norm is its own
    masks.remove()
    torch.testing.assert_close(norm(x), norm[1](norm[0].bias.expand(3, 6)))
