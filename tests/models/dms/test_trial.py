"""What tracing takes for channel by channel, and is not, stays whole and is never cut wrongly."""

import copy
import warnings
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
import torchvision
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.models import VisionTransformer
from mmpretrain.models.utils.norm import LayerNorm2d
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from mmscale.apis.pruning import channel_groups, prune
from mmscale.errors import UsageError
from mmscale.models import DifferentiableTopK
from mmscale.models.dms import Masks

IMAGES = (torch.zeros(2, 3, 8, 8),)


class Between(nn.Module):
    """Two layers, and something between them."""

    def __init__(self, operation, inputs=8, outputs=8, last=nn.Conv2d):
        super().__init__()
        self.first = nn.Conv2d(3, outputs, 1)
        self.second = last(inputs, 5, 1) if last is nn.Conv2d else last(inputs, 5)
        self.operation = operation

    def forward(self, x):
        return self.second(self.operation(self.first(x)))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.one, self.other = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.other.weight = self.one.weight

    def forward(self, x):
        return self.last(self.other(self.one(self.first(x)).relu()).relu())


class Attention(nn.Module):
    """Attention of one's own, whose scale and cost follow its width."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Conv2d(3, 24, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        q, k, v = self.qkv(x).flatten(2).transpose(1, 2).chunk(3, dim=-1)
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).unflatten(2, x.shape[2:]))


@pytest.mark.parametrize(
    'model',
    [
        Between(lambda x: x.flip(1)),
        Between(lambda x: x.roll(3, 1)),
        Between(lambda x: x.softmax(1)),
        Between(lambda x: x - x.mean(1, keepdim=True)),
        Between(lambda x: functional.pixel_shuffle(x, 2), 2),
        Between(lambda x: functional.pixel_shuffle(x, 2), 2),
        Between(lambda x: x * torch.ones(8, 1, 1)),
        Between(nn.GLU(1), 4),
        Between(weight_norm(nn.Conv2d(8, 8, 1))),
        Tied(),
        Attention(),
    ],
)
def test_what_is_not_understood_stays_whole(model):
    with pytest.warns(UserWarning, match=r'stay whole, as .* to prune them, declare its groups'):
        groups = channel_groups(model, IMAGES)
    assert not groups.all
    with (
        warnings.catch_warnings(),
        pytest.raises(ValueError, match=f'{type(model).__name__} has no width that can go'),
    ):
        warnings.simplefilter('ignore')
        prune(model, IMAGES, 0.5)


def halves(x):
    half = x.shape[1] // 2
    return x[:, half:] * x[:, :half]


@pytest.mark.parametrize(
    ('model', 'elements'),
    [
        # Of a shuffle the same slots of both parts go together, of halves that meet both.
        (Between(lambda x: functional.channel_shuffle(x, 2)), 4),
        (Between(halves, 4), 4),
        (Between(lambda x: torch.stack(x.chunk(2, 1), 2).flatten(1, 2)), 4),
        (Between(lambda x: x.repeat(1, 2, 1, 1), 16), 8),
        (Between(lambda x: x.permute(0, 2, 3, 1).flatten(1), 8 * 64, last=nn.Linear), 8),
        # A gate of one channel ties none.
        (Between(lambda x: x * x.new_ones(1, 1, 8, 8).sigmoid()), 8),
        # What is a batch, or is beside channels, leaves them as they are.
        (Between(lambda x: x.flip(2).roll(1, 0)), 8),
    ],
)
def test_what_moves_channels_is_followed(model, elements):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        (group,) = assert_pruned_is_masked(model, [torch.randn(2, 3, 8, 8)])
    assert group.size == elements


class Flip(nn.Module):
    """What puts channels in another order."""

    def forward(self, x):
        return x.flip(1)


def test_the_rest_of_a_network_is_pruned():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.PReLU(),
        nn.Conv2d(8, 6, 1),
        Flip(),
        nn.Conv2d(6, 5, 1),
        nn.Hardtanh(-0.5, 2.0),
        nn.Conv2d(5, 2, 1),
    )
    with pytest.warns(
        UserWarning, match='1 of 3 groups stay whole, .*: 2: flip picks some of them; to'
    ):
        small, cost = prune(model, IMAGES, 0.5)
    assert [layer.weight.shape[0] for layer in small if isinstance(layer, nn.Conv2d)] == [
        4,
        6,
        2,
        2,
    ]
    assert cost.params == 3 * 4 + 4 + 1 + 4 * 6 + 6 + 6 * 2 + 2 + 2 * 2 + 2


def test_root_mean_square_norms_follow_their_width():
    model = nn.Sequential(nn.Linear(3, 8), nn.RMSNorm(8), nn.Linear(8, 2))
    (group,) = channel_groups(model, [torch.zeros(1, 3)])
    assert [(member.module, member.role) for member in group.members] == [
        ('0', 'out'),
        ('1', 'norm'),
        ('2', 'in'),
    ]
    small, _ = prune(model, [torch.zeros(1, 3)], 0.5)
    assert small[1].normalized_shape == (4,)
    assert small(torch.ones(1, 3)).shape == (1, 2)


def test_halves_of_one_layer_are_groups_of_their_own():
    class Reversible(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
            self.f, self.g = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            left, right = self.first(x).chunk(2, 1)
            left = left + self.f(right)
            return self.last(torch.cat([left, right + self.g(left)], 1))

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        groups = channel_groups(Reversible(), IMAGES)
    assert len({group.name for group in groups}) == len(groups)


def test_blocks_of_a_plain_sequential_have_a_name():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(8, 8, 1)

        def forward(self, x):
            return x + self.layer(x)

    model = nn.Sequential(nn.Conv2d(3, 8, 1), Block(), Block(), nn.Conv2d(8, 2, 1))
    (depth,) = channel_groups(model, IMAGES).depths
    assert (depth.name, depth.blocks) == ('1', ('1', '2'))
    small, _ = prune(model, IMAGES, {'1': 0.5})
    assert small(*IMAGES).shape == (2, 2, 8, 8)


class PositionAttention(nn.Module):
    """Attention over the positions of a map, whose values also go through a convolution (PSA)."""

    def __init__(self, width=8, heads=2):
        super().__init__()
        self.heads = heads
        self.stem, self.last = nn.Conv2d(3, width, 1), nn.Conv2d(width, 2, 1)
        self.qkv, self.proj = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(width, width, 1)
        self.position = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, x):
        x = self.stem(x).relu()
        q, k, v = self.qkv(x).flatten(2).unflatten(1, (self.heads, -1)).split([2, 2, 4], dim=2)
        y = v @ (q.transpose(-2, -1) @ k).softmax(-1).transpose(-2, -1)
        return self.last(x + self.proj(y.reshape(x.shape) + self.position(v.reshape(x.shape))))


class GroupedQueries(nn.Module):
    """Attention whose two heads of queries share keys and values, and an MLP after it."""

    def __init__(self, width=8):
        super().__init__()
        self.q, self.kv = nn.Linear(width, 8), nn.Linear(width, 8)
        self.o, self.last = nn.Linear(8, width), nn.Linear(width, 3)
        self.up, self.down = nn.Linear(width, 12), nn.Linear(12, width)

    def forward(self, x):
        q = self.q(x).unflatten(-1, (2, 4)).transpose(1, 2)
        kv = self.kv(x).unflatten(-1, (1, 8)).transpose(1, 2)[:, :, None]
        k, v = kv.expand(-1, 1, 2, -1, 8).flatten(1, 2).split([4, 4], dim=-1)
        y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.o(y)
        return self.last(x + self.down(self.up(x).relu()))


def shuffle_net():
    return torchvision.models.shufflenet_v2_x0_5(num_classes=3)


@pytest.mark.parametrize(
    ('build', 'shape', 'whole', 'widths'),
    [
        (PositionAttention, (1, 3, 8, 8), {'stem', 'qkv'}, set()),
        (GroupedQueries, (1, 5, 8), {'q', 'kv'}, {'up'}),
        # Of each unit the branch alone; what is shuffled often enough is one element.
        (
            shuffle_net,
            (1, 3, 32, 32),
            {'stage3.0.branch1.2', 'stage3.6.branch2.5'},
            {'conv1.0', 'stage2.0.branch1.2', 'stage2.1.branch2.0', 'stage4.3.branch2.0'},
        ),
    ],
)
def test_channels_that_go_in_circles_come_to_an_end(build, shape, whole, widths):
    torch.manual_seed(0)
    inputs = [torch.randn(shape)]
    model = build()
    with pytest.warns(UserWarning, match='stay whole, as .* to prune them, declare') as caught:
        groups = channel_groups(model, inputs)
    assert all(name in str(caught[0].message) for name in whole)
    assert not whole & groups.by_name.keys()
    assert widths <= groups.by_name.keys()


class ByFunction(nn.Module):
    """Layers whose weights are used without a call of the layer."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(8, 8), nn.Linear(8, 6), nn.Linear(6, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.last = nn.Linear(8, 2)

    def forward(self, x):
        x = functional.linear(self.first(x), self.second.weight)
        x = self.third(x)
        return self.last(self.attention(x, x, x)[0])


def test_layers_that_functions_use_are_no_reason_to_refuse():
    with pytest.warns(UserWarning, match='stay whole'):
        groups = channel_groups(ByFunction(), [torch.randn(1, 5, 8)])
    assert not groups.by_name.keys() & {'second', 'third', 'attention.out_proj'}


class Odd(Exception):
    """An error of a network's own."""


class Failing(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error, self.layer = error, nn.Linear(8, 2)

    def forward(self, x):
        raise self.error


@pytest.mark.parametrize('error', [Odd('lost'), StopIteration(), RecursionError('deep')])
def test_whatever_goes_wrong_is_one_sentence(error):
    with pytest.raises(UsageError, match=f'Failing cannot be traced .{type(error).__name__}.*dec'):
        channel_groups(Failing(error), [torch.randn(1, 8)])


class Scaled(nn.LayerNorm):
    """A relative of the layer norm with the channels where that has them."""


@pytest.mark.parametrize(
    ('model', 'shape'),
    [
        # As many channels as pixels on each side: no shape says where the channels are.
        (nn.Sequential(nn.Linear(3, 8), Scaled(8), nn.Linear(8, 2)), (1, 8, 8, 3)),
        (nn.Sequential(nn.Conv2d(3, 8, 1), LayerNorm2d(8), nn.Conv2d(8, 2, 1)), (1, 3, 8, 8)),
    ],
)
def test_relatives_of_layer_norm_say_where_channels_are(model, shape):
    x = torch.randn(shape)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        (group,) = channel_groups(model, [x])
    assert [member.role for member in group.members] == ['out', 'norm', 'in']
    assert_pruned_is_masked(model, [x])


def assert_pruned_is_masked(model, inputs):
    groups = channel_groups(model, inputs)
    keep = {group.name: range(0, group.size, 2) for group in groups.all}
    gates = nn.ModuleDict()
    for group in groups.all:
        gates[group.key] = gate = DifferentiableTopK(group.size)
        gate.hard_mask.zero_()[::2] = 1
        gate.hard.fill_(True)
    small, _ = prune(model, inputs, keep)
    model, small = copy.deepcopy(model), copy.deepcopy(small)
    model.eval()
    small.eval()
    Masks(model, groups, gates).hard = True
    with torch.no_grad():
        for found, expected in zip(small(*inputs), model(*inputs), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    return groups


VIT = dict(embed_dims=24, num_layers=2, num_heads=4, feedforward_channels=32)
BACKBONES = {
    'ResNet_CIFAR': (dict(depth=18, base_channels=8, stem_channels=8), 11),
    'ConvMixer': (dict(arch=dict(embed_dims=16, depth=2, patch_size=4, kernel_size=3)), 2),
    'RevVisionTransformer': (dict(arch=VIT, img_size=32, patch_size=8), 4),
    'ShuffleNetV2': (dict(widen_factor=0.5), 19),
    'MlpMixer': (
        dict(
            arch=dict(embed_dims=16, num_layers=2, tokens_mlp_dims=8, channels_mlp_dims=24),
            img_size=32,
            patch_size=8,
        ),
        4,
    ),
}


@pytest.mark.filterwarnings('ignore:.*stay whole')
@pytest.mark.parametrize('kind', BACKBONES)
def test_bare_backbones_of_mmpretrain(kind):
    """Their ``eval()`` returns nothing, and their outputs are several."""
    options, widths = BACKBONES[kind]
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(dict(type=kind, **options))
    torch.manual_seed(0)
    groups = assert_pruned_is_masked(model, [torch.randn(1, 3, 32, 32)])
    assert len(groups.widths) == widths


class Other(VisionTransformer):
    """A relative whose layers are called otherwise."""

    def __init__(self):
        super().__init__(VIT, 32, 8)
        self.stages = self.layers
        del self.layers

    def forward(self, x):
        self.layers = list(self.stages)
        try:
            return super().forward(x)
        finally:
            del self.layers


def test_what_is_declared_otherwise_is_traced():
    with pytest.warns(UserWarning) as caught:
        groups = channel_groups(Other(), [torch.randn(1, 3, 32, 32)])
    assert 'Other has not the form that is declared of VisionTransformer' in str(caught[0].message)
    assert {(group.kind, group.size) for group in groups} == {('width', 32), ('heads', 4)}


@dataclass
class Features:
    """What a network may give, where no tree of tensors is seen."""

    logits: torch.Tensor
    maps: object


class GivesAnObject(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 12, 3)
        self.last = nn.Linear(12, 4)

    def forward(self, x):
        x = self.first(x).relu()
        maps = self.second(x)
        return Features(self.last(maps.mean(dim=(2, 3))), SimpleNamespace(maps=[maps]))


def test_what_leaves_in_an_object_keeps_its_width():
    groups = channel_groups(GivesAnObject(), [torch.randn(1, 3, 8, 8)])
    assert [group.name for group in groups] == ['first']


def test_a_model_that_gives_no_tensor_is_refused():
    class GivesNothing(GivesAnObject):
        def forward(self, x):
            super().forward(x)

    with pytest.raises(UsageError, match='gives no tensors'):
        channel_groups(GivesNothing(), [torch.randn(1, 3, 8, 8)])
