"""Counting of modules: by hand, against pycls' numbers, against the count of Archs."""

import csv
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from mmscale.cost import Cost, count_module, explain_difference
from mmscale.quiet import quiet_imports

with quiet_imports():
    from mmpretrain.models import build_classifier

ROWS = Path(__file__).parents[1] / 'data' / 'pycls_complexity.csv'
with ROWS.open(encoding='utf-8', newline='') as file:
    PYCLS = {row['base']: row for row in csv.DictReader(file) if row['strategy'] == 'base'}


class Call(nn.Module):
    """A module made of one function."""

    def __init__(self, function, *weights):
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(shape)) for shape in weights)
        self.function = function

    def forward(self, x):
        return self.function(x, *self.weights)


def cost(module, *shape, **kwargs):
    return count_module(module, shape, memory=False, **kwargs).cost


@pytest.mark.parametrize(
    ('module', 'shape', 'expected'),
    [
        # 3x3, 4 -> 6 in two groups, on 8x8 to 4x4; the bias is a parameter and no flop
        (nn.Conv2d(4, 6, 3, 2, 1, groups=2), (4, 8, 8), Cost(16 * 9 * 2 * 6, 9 * 2 * 6 + 6, 96)),
        # every input pixel meets the whole kernel
        (
            nn.ConvTranspose2d(4, 6, 2, 2, groups=2, bias=False),
            (4, 5, 5),
            Cost(25 * 4 * 4 * 3, 4 * 4 * 3, 600),
        ),
        (nn.Conv1d(3, 2, 5), (3, 9), Cost(5 * 5 * 3 * 2, 32, 10)),
        (nn.Conv3d(1, 2, 3, padding='same'), (1, 4, 4, 4), Cost(64 * 27 * 2, 56, 128)),
        (nn.Linear(5, 7), (3, 5), Cost(3 * 5 * 7, 42, 21)),
        # two cells of four gates, six steps of four numbers
        (nn.LSTM(4, 5), (6, 4), Cost(6 * 20 * (4 + 5), 220, 6 * 20 * 2)),
        (Call(lambda x: x @ x.mT), (2, 3, 4), Cost(2 * 3 * 3 * 4, 0, 18)),
        (Call(lambda x, w: functional.linear(x, w), (7, 5)), (3, 5), Cost(105, 35, 21)),
        (Call(lambda x: torch.einsum('bnd,bmd->bnm', x, x)), (3, 4), Cost(36, 0, 9)),
        (
            Call(lambda x: torch.baddbmm(x[0], x[0], x[0])),
            (2, 3, 3),
            Cost(2 * 27, 0, 18),
        ),
        (Call(lambda x, w: torch.mv(w, x[0]), (3, 4)), (4,), Cost(12, 12, 3)),
        # norms, activations, pools, additions and resizing are no multiply-adds
        (
            nn.Sequential(nn.BatchNorm2d(4), nn.GELU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)),
            (4, 6, 6),
            Cost(0, 8, 0),
        ),
        (
            Call(lambda x: functional.interpolate(x, scale_factor=2, mode='bilinear')),
            (1, 3, 3),
            Cost(),
        ),
        (nn.Identity(), (3,), Cost()),
    ],
)
def test_operations_by_hand(module, shape, expected):
    assert cost(module, *shape) == expected


def attention(fused):
    def scores(query, key, value):
        if fused:
            return functional.scaled_dot_product_attention(query, key, value)
        return (query @ key.mT).softmax(-1) @ value

    return Call(lambda x: scores(x, x[:, :, :3], x[:, :, :3, :]))


def test_fused_attention_counts_as_the_matrix_products_in_it():
    # 2 heads of 4: 5 queries meet 3 keys, then 3 values
    expected = Cost(2 * (5 * 3 * 4) * 2, 0, 2 * 5 * 3 + 2 * 5 * 4)
    assert cost(attention(True), 2, 5, 4) == cost(attention(False), 2, 5, 4) == expected


@pytest.mark.parametrize('device', ['meta', 'cpu'])
def test_attention_modules_hide_nothing(device, monkeypatch):
    # In evaluation mode nn.MultiheadAttention is one operation, which would count as nothing.
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    if device == 'cpu':
        plain, layer = layer, Call(lambda x: plain(x) if float(x.sum()) > -1e9 else x)
        layer.plain = plain
    tokens, width = 5, 8
    projections = 4 * tokens * width * width
    products = 2 * tokens * tokens * width
    expected = projections + products + 2 * tokens * width * 16
    assert cost(layer, tokens, width).flops == expected
    assert torch.backends.mha.get_fastpath_enabled()


def test_pycls_convention_adds_biases_and_max_pools():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 1, bias=False),
        nn.Flatten(),
        nn.Linear(5 * 16, 7),
    )
    ours, theirs = cost(net, 3, 8, 8), cost(net, 3, 8, 8, convention='pycls')
    assert theirs.flops - ours.flops == 4 * 64 + 7
    assert theirs.acts - ours.acts == 4 * 16
    assert theirs.params == ours.params


GOLDEN = [
    *(('ResNet', dict(depth=depth), 2048, f'ResNet-{depth}') for depth in (50, 101)),
    *(
        ('RegNet', dict(arch=f'regnetx_{size.lower()}'), width, f'RegNetX-{size}')
        for size, width in (('400MF', 384), ('1.6GF', 912), ('3.2GF', 1008), ('12GF', 2240))
    ),
    *(
        ('EfficientNet', dict(arch=f'b{i}'), width, f'EfficientNet-B{i}')
        for i, width in ((0, 1280), (2, 1408))
    ),
]


@pytest.mark.parametrize(('kind', 'arch', 'width', 'base'), GOLDEN, ids=lambda value: str(value))
def test_mmpretrains_networks_cost_what_pycls_computed(kind, arch, width, base):
    with torch.device('cpu'):
        net = build_classifier(
            dict(
                type='ImageClassifier',
                backbone=dict(type=kind, **arch),
                neck=dict(type='GlobalAveragePooling'),
                head=dict(type='LinearClsHead', num_classes=1000, in_channels=width),
            )
        )
    size = int(PYCLS[base]['resolution'])
    counted = count_module(net, (3, size, size), convention='pycls', memory=False)
    row = {key: int(PYCLS[base][key]) for key in ('flops', 'params', 'acts')}
    assert counted.cost == Cost(**row)
    assert sum(counted.by_part.values(), Cost()) == counted.cost


class Detector(nn.Module):
    """A backbone with a list of stages and a weight of its own, and a shared head."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.stem = nn.Conv2d(3, 4, 1)
        self.backbone.stages = nn.ModuleList(
            [nn.Conv2d(4, 4, 1), nn.ModuleList([nn.Conv2d(4, 4, 3)])]
        )
        self.backbone.token = nn.Parameter(torch.zeros(11))
        self.backbone.forward = self.features
        self.act = nn.ReLU()
        self.head = nn.Conv2d(4, 2, 1, bias=False)
        self.scale = nn.Parameter(torch.zeros(2))

    def features(self, x):
        x = self.backbone.stages[0](self.backbone.stem(x))
        return x, self.backbone.stages[1][0](x)

    def forward(self, x):
        features = self.backbone.forward(x)
        return [self.act(self.head(feature)) for feature in features], x.flatten(1) @ x.flatten(
            1
        ).mT


def test_parts_are_the_backbones_and_the_models_children_lists_one_by_one():
    counted = count_module(Detector(), (3, 6, 6))
    assert counted.by_part == {
        'itself': Cost(108, 2, 1),
        'backbone.stem': Cost(36 * 12, 16, 144),
        'backbone.stages.0': Cost(36 * 16, 20, 144),
        'backbone.stages.1': Cost(16 * 144, 148, 64),
        'backbone': Cost(0, 11, 0),
        'head': Cost((36 + 16) * 8, 8, 2 * (36 + 16)),
    }
    assert counted.cost == sum(counted.by_part.values(), Cost())


class Branching(nn.Module):
    """Needs real numbers on its way, so that it cannot run without computing."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        if float(self.layer.weight.detach().abs().sum()) < 0:
            return x
        return self.norm(self.layer(x))


def test_module_that_needs_numbers_is_counted_where_it_is():
    counted = count_module(Branching(), (4,), batch=3)
    assert counted.cost == Cost(16, 28, 4)
    assert counted.activation_bytes_training > 0
    meta = Branching().to('meta')
    with pytest.raises(ValueError, match=r'^Branching does not run on an input of shape \(1, 4\)'):
        count_module(meta, (4,))


@pytest.mark.parametrize(
    'make', [Branching, lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))]
)
def test_module_is_left_as_it_is(make):
    net = make()
    net[0].eval() if isinstance(net, nn.Sequential) else net.norm.eval()
    modes = [part.training for part in net.modules()]
    before = {key: value.clone() for key, value in net.state_dict().items()}
    count_module(net, (4,), batch=5)
    assert [part.training for part in net.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_memory_by_hand():
    # float32 planes of 8x8: input 3 (768 bytes), 4 after the first layer (1024), 4, then 2
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    counted = count_module(net, (3, 8, 8))
    # input, input of the activation, its output
    assert counted.peak_bytes_inference == 768 + 1024 + 1024
    # inputs of both convolutions; the activation keeps its output, which is the same tensor
    assert counted.activation_bytes_training == 768 + 1024
    larger = count_module(net, (3, 8, 8), batch=5)
    assert larger.peak_bytes_inference == 5 * counted.peak_bytes_inference
    assert larger.activation_bytes_training == 5 * counted.activation_bytes_training
    assert (larger.batch, larger.cost) == (5, counted.cost)
    inplace = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1))
    assert count_module(inplace, (3, 8, 8)).peak_bytes_inference == 768 + 1024 + 512
    half = count_module(net, inputs=(torch.zeros(2, 3, 8, 8),))
    assert (half.batch, half.flops) == (2, 2 * counted.flops)


def test_residual_is_alive_until_it_is_added():
    net = Call(lambda x: (x * 2).relu().relu().relu() + x)
    assert count_module(net, (1, 10, 10)).peak_bytes_inference == 3 * 400
    net = Call(lambda x: (lambda y: y.relu().relu() + y)(x * 2))
    assert count_module(net, (1, 10, 10)).peak_bytes_inference == 4 * 400


def test_training_memory_is_unknown_where_it_cannot_train():
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3))
    assert count_module(net, (3, 4, 4)).activation_bytes_training is None
    assert count_module(net, (3, 4, 4), batch=2).activation_bytes_training > 0


def test_uncounted_matrix_work_is_named():
    with pytest.warns(UserWarning, match=r'^Bilinear2: _trilinear seems to multiply matrices'):
        counted = count_module(
            type('Bilinear2', (Call,), {})(lambda x, w: functional.bilinear(x, x, w), (2, 3, 3)),
            (3,),
        )
    assert counted.uncounted == ('_trilinear',)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        net = Call(lambda x: functional.interpolate(functional.pad(x, (1, 1)), 7, mode='linear'))
        assert count_module(net, (2, 5)).uncounted == ()


def test_bad_input_is_refused():
    for kwargs, message in (
        (dict(input_shape=(3, 8, 8), convention='timm'), "convention='timm' is not one of"),
        (dict(), 'exactly one of input_shape and inputs'),
        (dict(input_shape=(3, 8, 8), inputs=()), 'exactly one of input_shape and inputs'),
        (
            dict(input_shape=(3, 0, 8)),
            r'input_shape=\(3, 0, 8\): size=0 must be an integer of 1 or more',
        ),
        (dict(input_shape=(3, 8, 8), batch=0), 'batch=0 must be an integer of 1 or more'),
        (dict(input_shape=(4, 8, 8)), r'Conv2d does not run on an input of shape \(1, 4, 8, 8\)'),
    ):
        with pytest.raises(ValueError, match=message):
            count_module(nn.Conv2d(3, 4, 3), **kwargs)


class TinyTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 2, 2)
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        x = self.norm(self.patches(x).flatten(2).mT).unsqueeze(1)
        return functional.scaled_dot_product_attention(x, x, x)


def test_difference_to_mmengine_is_explained_to_the_last_unit():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1))
    difference = explain_difference(net, (3, 8, 8))
    assert difference.ours == cost(net, 3, 8, 8).flops
    assert set(difference.reasons) == {'batch_norm', 'adaptive_avg_pool2d'}
    assert min(difference.reasons.values()) > 0
    assert difference.flops == difference.ours + sum(difference.reasons.values())

    difference = explain_difference(TinyTransformer(), (3, 8, 8))
    assert difference.reasons['scaled_dot_product_attention'] == -2 * 16 * 16 * 8
    assert difference.reasons['layer_norm'] > 0
    assert difference.flops == difference.ours + sum(difference.reasons.values())
    assert 'adds layer_norm (+' in str(difference)
    assert 'misses scaled_dot_product_attention (-4,096)' in str(difference)
    same = explain_difference(nn.Conv2d(3, 4, 3).to('meta'), (3, 8, 8))
    assert str(same) == "MMEngine's FlopAnalyzer reports the same flops"


class Chooses(nn.Module):
    """Its second layer sees as many pixels as are not zero: it needs numbers, not good ones."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.linear = nn.Linear(4, 5)

    def forward(self, images, samples=None):
        features = self.conv(images)
        chosen = features.permute(0, 2, 3, 1)[features[:, 0] != 0]
        return self.linear(chosen) if samples == len(images) else chosen


def test_numbers_can_be_drawn_in_the_place_of_products(monkeypatch):
    module = Chooses()

    def samples(batch):
        return dict(samples=batch)

    computed = count_module(module, (3, 6, 4), keywords=samples)
    assert computed.flops == 6 * 4 * (3 * 4 * 9 + 4 * 5)
    drawn = count_module(module, (3, 6, 4), keywords=samples, draw=True)
    assert drawn == computed
    # Zeros come of these weights, so that no pixel is left.
    nn.init.zeros_(module.conv.weight)
    nn.init.zeros_(module.conv.bias)
    assert count_module(module, (3, 6, 4), keywords=samples).flops == 6 * 4 * 3 * 4 * 9
    assert count_module(module, (3, 6, 4), keywords=samples, draw=True) == computed
    assert count_module(module, (3, 6, 4)).by_part.keys() == {'conv', 'linear'}
