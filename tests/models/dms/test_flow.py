"""Layers, heads and blocks that one forward pass shows, each with a trial of what is pruned."""

import copy
import warnings

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.models.utils import GRN
from torch import nn
from torch.nn import functional

from mmscale.models.dms import apply_pruning, channel_groups, plan_pruning
from mmscale.models.dms.labels import FIXED, Labels
from mmscale.models.dms.layers import masked_norm
from mmscale.models.dms.trial import sound_groups, with_random_weights

MAPS = [torch.zeros(1, 3, 8, 8)]
TOKENS = [torch.zeros(1, 5, 8)]


def groups_of(model, inputs):
    """Its groups, none of which may stay whole."""
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        return channel_groups(model, inputs)


def test_labels_that_are_joined_share_their_fate():
    labels = Labels()
    a, b, c = (labels.fresh(2) for _ in range(3))
    labels.join(a, b, 'of a and b')
    labels.join(b, torch.tensor([int(c[0]), FIXED]), 'of b and c')
    classes = labels.classes()
    assert classes[a[0]] == classes[b[0]] == classes[c[0]]
    assert classes[a[1]] == classes[b[1]] != classes[c[1]]
    assert [(found.tolist(), why) for found, why in labels.reasons if found.size] == [
        ([int(b[1])], 'of b and c')
    ]


class Gated(nn.Module):
    """A map that a map of one channel weighs: it ties no channels to each other."""

    def __init__(self):
        super().__init__()
        self.first, self.gate, self.last = (
            nn.Conv2d(3, 8, 1),
            nn.Conv2d(8, 1, 1),
            nn.Conv2d(8, 2, 1),
        )

    def forward(self, x):
        x = self.first(x)
        return self.last(x * self.gate(x).sigmoid())


def test_a_gate_of_one_channel_ties_none():
    (group,) = groups_of(Gated(), MAPS)
    assert (group.name, group.size) == ('first', 8)
    assert [member.module for member in group.members] == ['first', 'gate', 'last']


class Scale(nn.Module):
    """A scale and a shift of channels, in parameters of its own."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))
        self.place = nn.Parameter(torch.zeros(1, 5, 8))

    def forward(self, x):
        return x * self.weight + self.bias + self.place


def test_parameters_between_layers_are_followed():
    model = nn.Sequential(nn.Linear(8, 8), Scale(), nn.Linear(8, 2))
    (group,) = groups_of(model, TOKENS)
    members = {(member.module, member.role, member.dim) for member in group.members}
    assert members == {
        ('0', 'out', None),
        ('1', 'through', None),
        ('1.place', 'through', -1),
        ('2', 'in', None),
    }


class Attention(nn.Module):
    """Attention that keeps the number of its heads and their size."""

    def __init__(self, heads=4, size=6):
        super().__init__()
        self.num_heads, self.size = heads, size
        self.qkv, self.proj = nn.Linear(8, 3 * heads * size), nn.Linear(heads * size, 8)

    def forward(self, x):
        n, length, _ = x.shape
        qkv = self.qkv(x).reshape(n, length, 3, self.num_heads, self.size)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((scores @ v).transpose(1, 2).flatten(2))


def test_heads_are_found_where_a_module_counts_them():
    model = nn.Sequential(Attention(), nn.Linear(8, 2))
    groups = groups_of(model, TOKENS)
    heads = groups.by_name['0.qkv']
    assert (heads.kind, heads.size, heads.counts) == ('heads', 4, (('0', 'num_heads', 1),))
    small = apply_pruning(model, plan_pruning(model, groups, {'0.qkv': [0, 2]}))
    assert small[0].num_heads == 2
    assert small[0].qkv.weight.shape == (36, 8)


class Normed(nn.Module):
    """Channels of a map under a group norm."""

    def __init__(self, parts):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 12, 3), nn.GroupNorm(parts, 12)
        self.last = nn.Conv2d(12, 2, 1)

    def forward(self, x):
        return self.last(self.norm(self.first(x)).relu())


@pytest.mark.parametrize(('parts', 'elements', 'role'), [(1, 12, 'norm'), (4, 4, 'through')])
def test_group_norms(parts, elements, role):
    model = Normed(parts)
    groups = groups_of(model, MAPS)
    (group,) = groups
    assert group.size == elements
    assert {member.module: member.role for member in group.members}['norm'] == role
    small = apply_pruning(model, plan_pruning(model, groups, {'first': [0, 1]}))
    assert small.norm.num_groups == (1 if parts == 1 else 2)
    assert small(torch.zeros(1, 3, 8, 8)).shape == (1, 2, 6, 6)


def test_a_group_norm_under_masks_has_the_statistics_of_what_stays():
    torch.manual_seed(0)
    norm = nn.GroupNorm(1, 6).double()
    norm.weight.data.uniform_(0.5, 1.5)
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    mask = torch.tensor([1.0, 0, 1, 1, 0, 1], dtype=torch.float64)
    stays = mask.bool()
    found = masked_norm(norm, x, mask, masks_output=True)
    expected = functional.group_norm(x[:, stays], 1, norm.weight[stays], norm.bias[stays])
    torch.testing.assert_close(found[:, stays], expected)
    assert not found[:, ~stays].any()
    torch.testing.assert_close(masked_norm(norm, x, torch.ones_like(mask)), norm(x))


class OwnLayerNorm(nn.Module):
    """A layer norm written anew, for channels before the sides of a map."""

    def __init__(self, width):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.eps, self.normalized_shape = 1e-6, (width,)

    def forward(self, x):
        x = x - x.mean(1, keepdim=True)
        x = x / (x.square().mean(1, keepdim=True) + self.eps).sqrt()
        return x * self.weight[:, None, None] + self.bias[:, None, None]


class Single(nn.LayerNorm):
    """A layer norm that works in single precision, whatever comes in."""

    def forward(self, x):
        result = functional.layer_norm(
            x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps
        )
        return result.to(x.dtype)


@pytest.mark.parametrize(
    ('model', 'inputs'),
    [
        (nn.Sequential(nn.Conv2d(3, 8, 1), OwnLayerNorm(8), nn.Conv2d(8, 2, 1)), MAPS),
        (nn.Sequential(nn.Linear(8, 8), Single(8), nn.Linear(8, 2)), TOKENS),
    ],
)
def test_relatives_of_layer_norm(model, inputs):
    (group,) = groups_of(model, inputs)
    assert [member.role for member in group.members] == ['out', 'norm', 'in']


class Silent(nn.Sequential):
    """As mmpretrain's backbones, whose changes of mode return nothing."""

    def train(self, mode=True):
        super().train(mode)

    def eval(self):
        super().eval()


def test_changes_of_mode_that_return_nothing():
    model = Silent(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1))
    assert len(groups_of(model, MAPS)) == 1


class Block(nn.Module):
    """A residual block of one form or another."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.one, self.other = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.norm, self.gate = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
        self.scale = nn.Parameter(torch.ones(8, 1, 1))

    def forward(self, x, size=None):
        if self.kind == 'gate behind the branch':
            y = self.norm(self.one(x))
            return x + self.other(y) * self.gate(y.mean((2, 3), keepdim=True)).sigmoid()
        if self.kind == 'pooling behind a norm':
            y = self.norm(x)
            y = (functional.avg_pool2d(y, 3, 1, 1) - y) * self.scale
            x = x + y
            return x + self.other(self.one(self.gate(x)).relu())
        if self.kind == 'arguments':
            return x + self.other(self.gate(self.norm(self.one(x))))
        return self.norm(self.gate(x + self.other(self.one(x))))


class Blocks(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.blocks = nn.ModuleList(Block(kind) for _ in range(2))

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x, x.shape[2:])
        return self.last(x)


@pytest.mark.parametrize(
    ('kind', 'ends'),
    [
        ('gate behind the branch', ('other',)),
        ('pooling behind a norm', ('norm', 'other')),
        ('arguments', ('other',)),
        ('not residual', None),
    ],
)
def test_blocks_of_all_forms(kind, ends):
    groups = groups_of(Blocks(kind), MAPS)
    found = [
        tuple(end.removeprefix(f'{block}.') for end in some)
        for depth in groups.depths
        for block, some in zip(depth.blocks, depth.branch_ends, strict=True)
    ]
    assert found == ([ends] * 2 if ends else [])


def test_blocks_that_start_as_the_identity():
    model = Blocks('pooling behind a norm')
    for block in model.blocks:
        nn.init.zeros_(block.norm.weight)
        nn.init.zeros_(block.other.weight)
        nn.init.zeros_(block.other.bias)
    (depth,) = groups_of(model, MAPS).depths
    assert depth.branch_ends[0] == ('blocks.0.norm', 'blocks.0.other')


class Coupled(nn.Module):
    """A width that only shows in a block, where it mixes with all others of it."""

    def __init__(self):
        super().__init__()
        self.hidden, self.end = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        y = self.hidden(x)
        # To a tracer a buffer; in fact the mean over channels.
        mean = torch.from_numpy(y.detach().numpy().mean(1, keepdims=True))
        return x + self.end(y - mean)


def test_widths_in_every_block_are_tried():
    """Whatever is wrong is in one block alone, the first or the last."""

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.end = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

        def forward(self, x):
            return x + self.end(self.hidden(x))

    for wrong in (0, 3):
        blocks = [Coupled() if i == wrong else Plain() for i in range(4)]
        model = nn.Sequential(nn.Conv2d(3, 8, 1), *blocks, nn.Conv2d(8, 2, 1))
        with pytest.warns(UserWarning, match=rf'{wrong + 1}\.hidden: masks and pruning differ'):
            groups = channel_groups(model, MAPS)
        hidden = {name for name in groups.by_name if name.endswith('hidden')}
        assert hidden == {f'{i + 1}.hidden' for i in range(4) if i != wrong}
        assert sum(depth.size for depth in groups.depths) == 4


def test_a_block_that_is_no_identity_is_found_by_its_trial():
    model = Blocks('gate behind the branch')
    groups = groups_of(model, MAPS)
    (depth,) = groups.depths
    wrong = copy.copy(depth)
    object.__setattr__(wrong, 'branch_ends', (('blocks.0.one',), depth.branch_ends[1]))
    object.__setattr__(groups, 'depths', (wrong,))
    assert sound_groups(model, groups, MAPS).depths == ()


class Last(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc = nn.Linear(width, 3)

    def forward(self, maps):
        return self.fc(maps[-1].mean((2, 3)))


@pytest.mark.parametrize(
    ('kind', 'arch', 'width'), [('RepVGG', 'A0', 1280), ('MobileOne', 's0', 1024)]
)
def test_branches_are_merged_after_pruning(kind, arch, width, random_half):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(dict(type=kind, arch=arch, out_indices=(3,)))
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    model = with_random_weights(nn.Sequential(model, Last(width))).double()
    groups = channel_groups(model, [x])
    assert len(groups) >= 3
    small = apply_pruning(model, plan_pruning(model, groups, random_half(groups)))
    small.eval()
    with torch.no_grad():
        expected = small(x)
        small[0].switch_to_deploy()
        torch.testing.assert_close(small(x), expected)


@pytest.mark.parametrize('last', [False, True])
def test_global_response_norms(last):
    torch.manual_seed(0)
    grn = GRN(6).double()
    for parameter in grn.parameters():
        parameter.data.normal_()
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    stays = torch.tensor([True, False, True, True, False, True])
    small = GRN(4).double()
    small.gamma.data, small.beta.data = grn.gamma[stays], grn.beta[stays]
    data_format = 'channel_last' if last else 'channel_first'

    def moved(values):
        return values.movedim(1, -1) if last else values

    found = masked_norm(grn, moved(x), stays.double(), data_format, masks_output=True)
    found = found.movedim(-1, 1) if last else found
    with torch.no_grad():
        expected = small(moved(x[:, stays]), data_format)
        expected = expected.movedim(-1, 1) if last else expected
    torch.testing.assert_close(found[:, stays], expected)
    assert not found[:, ~stays].any()


def test_a_global_response_norm_between_layers():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), GRN(8), nn.Conv2d(8, 2, 1))
    groups = groups_of(model, MAPS)
    small = apply_pruning(model, plan_pruning(model, groups, {'0': [1, 2]}))
    assert small[1].gamma.shape == small[1].beta.shape == (2,)
